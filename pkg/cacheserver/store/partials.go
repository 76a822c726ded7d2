// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

// keepPartial is the age at which a partial download is deleted at the start: its image was probably replaced.
const keepPartial = 24 * time.Hour

// syncTime limits the fsync calls of partial downloads at the end of the process, which is killed if it takes long.
const syncTime = 3 * time.Second

// partials are the files of the partial downloads that no Incoming uses. It is safe for concurrent use.
type partials struct {
	*disk
	problems *problems
	boot     string // of this process, see record

	mu    sync.Mutex // guards the following fields
	files map[digest.Digest]partial
	bytes int64 // of all files
}

// partial is a file that contains a part of a blob.
type partial struct {
	path  string
	bytes int64
}

func newPartials(d *disk, p *problems, boot string) *partials {
	return &partials{disk: d, problems: p, boot: boot, files: map[digest.Digest]partial{}}
}

// add adds a file with the bytes of the progress. Of two files of one blob, it keeps the one with more bytes and deletes the other
// one.
func (p *partials) add(progress Progress, path string) {
	p.put(progress.Digest, partial{path: path, bytes: progress.bytes()})
}

// put is add for an entry that take has returned.
func (p *partials) put(d digest.Digest, added partial) {
	if fewer := p.keepLarger(d, added); fewer.path != "" {
		_ = p.removePartial(fewer.path) // discard has noted the error
	}
}

// keepLarger returns the file that is not in the list afterwards, if there are two.
func (p *partials) keepLarger(d digest.Digest, added partial) (fewer partial) {
	p.mu.Lock()
	defer p.mu.Unlock()
	present := p.files[d]
	if present.path != "" && present.bytes >= added.bytes {
		return added
	}
	p.bytes += added.bytes - present.bytes
	p.files[d] = added
	return present
}

// total returns the number of bytes in all files.
func (p *partials) total() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bytes
}

// take returns a partial download, which has no entry afterwards.
func (p *partials) take(d digest.Digest) (taken partial, exists bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken, exists = p.files[d]
	p.remove(d)
	return taken, exists
}

// takeAny is take for any digest.
func (p *partials) takeAny() (taken partial, exists bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for d, taken := range p.files {
		p.remove(d)
		return taken, true
	}
	return partial{}, false
}

// remove removes an entry. The caller holds the lock.
func (p *partials) remove(d digest.Digest) {
	p.bytes -= p.files[d].bytes
	delete(p.files, d)
}

// reopen opens a partial download of the digest, see open.
func (p *partials) reopen(path string, d digest.Digest) (*volume.File, Progress, error) {
	f, progress, err := p.open(path)
	if err == nil && progress.Digest != d {
		err = errors.Join(errors.New("its record has another digest"), f.Close())
	}
	return f, progress, err
}

// open opens and locks a partial download, and reads its record. A file that lacks bytes of the progress, or can lack them, is an
// error.
func (p *partials) open(path string) (_ *volume.File, _ Progress, err error) {
	f, err := p.fs.OpenFile(path, os.O_RDWR, 0)
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
	progress, err := readRecord(p.reader.FS, path+recordSuffix, p.boot)
	if err != nil {
		return nil, Progress{}, err
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

// lock marks a file as used by this process until it is closed, so that another process on the same volume neither
// resumes nor deletes it. The error wraps volume.ErrLocked if another process uses it. File systems without locks are no
// error.
func lock(f *volume.File) error {
	err := f.Lock()
	if errors.Is(err, volume.ErrLocked) || volume.IsFailure(err) {
		return err
	}
	return nil
}

// forget deletes the partial download of a blob that was stored meanwhile.
func (p *partials) forget(d digest.Digest) error {
	taken, exists := p.take(d)
	if !exists {
		return nil
	}
	return p.removePartial(taken.path)
}

// sync makes the files independent of a restart of the machine, as far as the volume permits it: the record of a file that
// cannot be synced remains. After syncTime it begins with no further file: the last one takes until its fsync
// calls have ended, so that they were not in vain.
func (p *partials) sync() {
	p.mu.Lock()
	files := slices.Collect(maps.Values(p.files))
	p.mu.Unlock()
	for began := time.Now(); len(files) > 0 && time.Since(began) < syncTime; files = files[1:] {
		_ = p.syncFile(files[0].path)
	}
}

func (p *partials) syncFile(path string) error {
	f, progress, err := p.open(path)
	if err != nil {
		return err
	}
	err = f.Sync()
	if err == nil {
		var content []byte
		if content, err = (record{Progress: progress, Boot: p.boot, Synced: true}).encode(); err == nil {
			err = p.write(path+recordSuffix, content, durable)
		}
	}
	return errors.Join(err, f.Close())
}

// drop deletes one partial download. It returns false if there is none.
func (p *partials) drop() bool {
	taken, exists := p.takeAny()
	if !exists {
		return false
	}
	_ = p.removePartial(taken.path) // the caller finds out whether there is space now
	return true
}

// removePartial deletes a partial file and its record.
func (d *disk) removePartial(path string) error {
	return d.discard(path, path+recordSuffix)
}

// adoptAll finds the blobs whose download an earlier process did not finish. It deletes all other files in the
// directory, except files of another running process. Directories, and files that cannot be deleted, are problems.
func (p *partials) adoptAll(dir string) {
	entries, err := p.reader.ReadDir(dir)
	if errors.Is(err, syscall.ENOTDIR) {
		err = errors.New("must be a directory; nothing can be stored until it is deleted")
	}
	p.problems.addFile(dir, err)
	names := map[string]bool{}
	for _, entry := range entries {
		names[entry.Name()] = true
	}
	for _, entry := range entries {
		name, path := entry.Name(), filepath.Join(dir, entry.Name())
		file, isRecord := strings.CutSuffix(name, recordSuffix)
		switch {
		case entry.IsDir():
			p.problems.addFile(path, errors.New("unexpected directory; it is not used and can be deleted"))
		case isRecord && names[file]:
			// Handled with its file.
		case names[name+recordSuffix] && p.adopt(path):
		default:
			p.problems.addFile(path, p.removeUnused(path))
		}
	}
}

// adopt makes a partial download available to Receive, unless it is too old or unusable. It returns true if the file must not
// be deleted.
func (p *partials) adopt(path string) bool {
	info, err := p.fs.Stat(path)
	if err != nil || time.Since(info.ModTime()) > keepPartial {
		return false
	}
	progress, err := p.trim(path, info.ModTime())
	if err == nil {
		p.add(progress, path)
	}
	return err == nil || errors.Is(err, volume.ErrLocked)
}

// trim releases the space that a killed process had reserved for the rest of a partial download, and returns the progress. The
// age of the file is unchanged.
func (p *partials) trim(path string, written time.Time) (Progress, error) {
	f, progress, err := p.open(path)
	if err != nil {
		return Progress{}, err
	}
	if err = f.Trim(progress.Spans); err == nil {
		err = p.fs.Chtimes(path, written, written)
	}
	return progress, errors.Join(err, f.Close())
}

// removeUnused deletes a partial file unless another process uses it, or has deleted it.
func (p *partials) removeUnused(path string) error {
	f, err := p.fs.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return p.removePartial(path) // a file of another owner, or no regular file: it is not in use by a cache
	}
	switch err := lock(f); {
	case errors.Is(err, volume.ErrLocked):
		return f.Close()
	case err != nil:
		return errors.Join(err, f.Close()) // it may be in use
	}
	return errors.Join(p.removePartial(path), f.Close())
}
