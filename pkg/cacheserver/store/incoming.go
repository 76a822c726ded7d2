// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/store/layout"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/oci"
)

const (
	// recordSuffix follows the name of a partial file in the name of its record.
	recordSuffix = ".json"
	// maxRecordSize bounds a record, in bytes. It has room for more than 1000 spans.
	maxRecordSize = 64 << 10
	// keepPartial is the age at which a partial download is deleted at the start: its image was probably replaced.
	keepPartial = 24 * time.Hour
)

// Progress is the state of a partial download. Its JSON form is the record beside the file.
type Progress struct {
	Digest digest.Digest `json:"digest"`
	// Size of the whole blob in bytes, -1 if it is unknown.
	Size int64 `json:"size"`
	// Spans are the ranges that are in the file: offsets of the first byte and of the byte behind the last one, in bytes,
	// ascending, without overlaps.
	Spans [][2]int64 `json:"spans"`
	// Repositories contain the blob, as far as the download found out. The progress must not be used for others, because
	// the upstream may deny them the blob.
	Repositories []string `json:"repositories"`
}

func (p Progress) validate() error {
	if _, err := oci.ParseDigest(p.Digest.String()); err != nil {
		return err
	}
	end := int64(0)
	for _, span := range p.Spans {
		if span[0] < end || span[1] <= span[0] {
			return errors.New("its spans are not ascending")
		}
		end = span[1]
	}
	if p.Size >= 0 && end > p.Size {
		return errors.New("its spans exceed its size")
	}
	return nil
}

// partials are the paths of the partial downloads that no Incoming uses, by digest. It is safe for concurrent use.
type partials struct {
	mu    sync.Mutex // guards paths
	paths map[digest.Digest]string
}

func newPartials() *partials { return &partials{paths: map[digest.Digest]string{}} }

func (p *partials) add(d digest.Digest, path string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paths[d] = path
}

// take returns the path of a partial download, which has no entry afterwards, or "".
func (p *partials) take(d digest.Digest) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	path := p.paths[d]
	delete(p.paths, d)
	return path
}

// takeAny is take for any digest.
func (p *partials) takeAny() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for d, path := range p.paths {
		delete(p.paths, d)
		return path
	}
	return ""
}

// Incoming is a blob whose bytes arrive from the upstream, in any order. Several goroutines may call WriteAt, ReadAt and
// Open concurrently. One goroutine calls Reserve, Record, Commit, Keep, Discard and, after all others have ended, Close.
type Incoming struct {
	store     *Store
	file      File
	digest    digest.Digest
	committed bool
	kept      bool
	reserved  int64 // bytes that Close releases
}

// Receive returns the partial download with the digest and its progress, or a new one. Content with the digest is not
// evicted before Close. The caller calls Close, and before it Commit, Keep or Discard.
func (s *Store) Receive(d digest.Digest) (*Incoming, Progress, error) {
	s.pin(d)
	if path := s.partials.take(d); path != "" {
		f, progress, err := s.reopen(path, d)
		if err == nil {
			return &Incoming{store: s, file: f, digest: d}, progress, nil
		}
		if !errors.Is(err, errInUse) {
			// It cannot be resumed, so its space is more useful.
			_ = s.removePartial(path)
		}
	}
	f, err := s.create(d.Encoded() + "-")
	if err == nil {
		if err = lock(f); err != nil {
			err = errors.Join(err, f.Close(), s.removeIfExists(f.Name()))
		}
	}
	if err != nil {
		s.release(d)
		return nil, Progress{}, fmt.Errorf("creating blob %s: %w", d, err)
	}
	return &Incoming{store: s, file: f, digest: d}, Progress{Digest: d, Size: -1}, nil
}

// reopen opens a partial download and reads its record. Bytes that the file lacks are not part of the progress.
func (s *Store) reopen(path string, d digest.Digest) (_ File, _ Progress, err error) {
	f, err := s.fs.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, Progress{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := lock(f); err != nil {
		return nil, Progress{}, err
	}
	progress, err := readRecord(s.reader.FS, path+recordSuffix)
	if err != nil {
		return nil, Progress{}, err
	}
	if progress.Digest != d {
		return nil, Progress{}, errors.New("its record has another digest")
	}
	info, err := f.Stat()
	if err != nil {
		return nil, Progress{}, err
	}
	if n := len(progress.Spans); n > 0 && progress.Spans[n-1][1] > info.Size() {
		return nil, Progress{}, errors.New("the file is shorter than its record states")
	}
	return f, progress, nil
}

func readRecord(from layout.FS, path string) (Progress, error) {
	content, err := from.ReadFile(path, maxRecordSize)
	if err != nil {
		return Progress{}, err
	}
	var p Progress
	if err := json.Unmarshal(content, &p); err != nil {
		return Progress{}, fmt.Errorf("decoding %s: %w", path, err)
	}
	if err := p.validate(); err != nil {
		return Progress{}, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

// errInUse is the error of lock for a file of another process.
var errInUse = errors.New("another process uses the file")

// lock marks a file as used by this process until it is closed, so that another process on the same volume neither
// resumes nor deletes it. File systems without locks are no error.
func lock(f File) error {
	conn, ok := f.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var lockErr error
	if err := raw.Control(func(fd uintptr) { lockErr = syscall.Flock(int(fd), syscall.LOCK_EX|syscall.LOCK_NB) }); err != nil {
		return err
	}
	if errors.Is(lockErr, syscall.EWOULDBLOCK) {
		return errInUse
	}
	return nil
}

// ReadAt reads bytes that were written before.
func (i *Incoming) ReadAt(b []byte, offset int64) (int, error) { return i.file.ReadAt(b, offset) }

// WriteAt writes bytes of the blob.
func (i *Incoming) WriteAt(b []byte, offset int64) (int, error) {
	n, err := i.file.WriteAt(b, offset)
	if err != nil {
		i.store.noticeFull(err)
		return n, fmt.Errorf("writing blob %s: %w", i.digest, err)
	}
	return n, nil
}

// Open returns the file with a position of its own, so that the kernel can send it. The caller closes it. It fails after
// Discard.
func (i *Incoming) Open() (*volume.File, error) {
	f, err := i.store.fs.Open(i.file.Name())
	if errors.Is(err, fs.ErrNotExist) {
		f, err = i.store.fs.Open(i.store.layout.Data(i.digest)) // Commit moves it there
	}
	if err != nil {
		return nil, fmt.Errorf("opening blob %s: %w", i.digest, err)
	}
	return f, nil
}

// Reserve reserves the space for a blob of this size, in bytes, before it is written. A full volume is detected before
// clients receive any byte. If the space is missing, other partial downloads and the least recently used content are
// deleted, which takes some seconds at most. A volume that does not support reservations is no error.
func (i *Incoming) Reserve(ctx context.Context, size int64) error {
	try := func() error { return i.reserve(size) }
	err := try()
	for volume.IsFull(err) && i.store.dropPartial() {
		err = try()
	}
	if volume.IsFull(err) {
		err = i.store.Collector().MakeRoom(ctx, size, try)
	}
	if err != nil {
		i.store.noticeFull(err)
		return fmt.Errorf("reserving %d bytes for blob %s: %w", size, i.digest, err)
	}
	return nil
}

// reserve reserves the space once, within the size of the cache and on the file system.
func (i *Incoming) reserve(size int64) error {
	collector := i.store.Collector()
	if err := collector.Reserve(size); err != nil {
		return err
	}
	if err := allocate(i.file, size); err != nil {
		collector.Release(size)
		return err
	}
	i.reserved += size
	return nil
}

// dropPartial deletes one partial download. It returns false if there is none.
func (s *Store) dropPartial() bool {
	path := s.partials.takeAny()
	if path == "" {
		return false
	}
	_ = s.removePartial(path) // the caller finds out whether there is space now
	return true
}

// Record writes the progress beside the file, so that a process that starts after a crash resumes there.
func (i *Incoming) Record(p Progress) error {
	content, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if len(content) > maxRecordSize {
		return fmt.Errorf("recording the progress of blob %s: %d spans are too many", i.digest, len(p.Spans))
	}
	if err := i.store.write(i.file.Name()+recordSuffix, content, volatile); err != nil {
		return fmt.Errorf("recording the progress of blob %s: %w", i.digest, err)
	}
	return nil
}

// Commit stores the blob for the repositories. verified is the digest of its content.
func (i *Incoming) Commit(verified digest.Digest, repositories []string) error {
	if verified != i.digest {
		return fmt.Errorf("committing blob %s: %w: %s", i.digest, ErrDigestMismatch, verified)
	}
	err := i.store.publish(i.file, i.store.layout.Data(i.digest))
	i.store.stored(i.digest)
	if err != nil {
		return fmt.Errorf("committing blob %s: %w", i.digest, err)
	}
	i.committed = true
	for _, repository := range repositories {
		// A power failure must not leave content without a link, which is deleted.
		if err := i.store.linkBlob(repository, i.digest, durable); err != nil {
			return err
		}
	}
	return i.store.removeIfExists(i.file.Name() + recordSuffix)
}

// Keep records the progress and keeps the file for the next call of Receive, also after a restart.
func (i *Incoming) Keep(p Progress) error {
	if err := i.Record(p); err != nil {
		return errors.Join(err, i.Discard())
	}
	i.kept = true
	return nil
}

// Discard deletes the file unless it was committed. Its bytes remain readable until Close.
func (i *Incoming) Discard() error {
	if i.committed {
		return nil
	}
	return i.store.removePartial(i.file.Name())
}

// Close releases the file.
func (i *Incoming) Close() error {
	err := i.file.Close()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	if i.kept {
		// Not earlier, because the file is locked until it is closed.
		i.store.partials.add(i.digest, i.file.Name())
	}
	i.store.Collector().Release(i.reserved)
	i.store.release(i.digest)
	if err != nil {
		return fmt.Errorf("closing blob %s: %w", i.digest, err)
	}
	return nil
}

// removePartial deletes a partial file and its record.
func (d *disk) removePartial(path string) error {
	return errors.Join(d.removeIfExists(path), d.removeIfExists(path+recordSuffix))
}

// adoptPartials finds the blobs whose download an earlier process did not finish. It deletes all other files in the
// directory, except files of another running process. Directories, and files that cannot be deleted, are problems.
func (s *Store) adoptPartials(dir string) {
	entries, err := s.reader.ReadDir(dir)
	if errors.Is(err, syscall.ENOTDIR) {
		err = errors.New("must be a directory; nothing can be stored until it is deleted")
	}
	s.addProblem(dir, err)
	names := map[string]bool{}
	for _, entry := range entries {
		names[entry.Name()] = true
	}
	for _, entry := range entries {
		name, path := entry.Name(), filepath.Join(dir, entry.Name())
		file, isRecord := strings.CutSuffix(name, recordSuffix)
		switch {
		case entry.IsDir():
			s.addProblem(path, errors.New("unexpected directory; it is not used and can be deleted"))
		case isRecord && names[file]:
			// Handled with its file.
		case names[name+recordSuffix] && s.adopt(path):
		default:
			s.addProblem(path, s.removeUnused(path))
		}
	}
}

// adopt makes a partial download available to Receive, unless it is too old or unusable.
func (s *Store) adopt(path string) bool {
	info, err := s.fs.Stat(path)
	if err != nil || time.Since(info.ModTime()) > keepPartial {
		return false
	}
	p, err := readRecord(s.reader.FS, path+recordSuffix)
	if err != nil {
		return false
	}
	s.partials.add(p.Digest, path)
	return true
}

// removeUnused deletes a partial file unless another process uses it, or has deleted it.
func (s *Store) removeUnused(path string) error {
	f, err := s.fs.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return s.removePartial(path) // a file of another owner, or no regular file: it is not in use by a cache
	}
	if err := lock(f); errors.Is(err, errInUse) {
		return f.Close()
	}
	return errors.Join(s.removePartial(path), f.Close())
}
