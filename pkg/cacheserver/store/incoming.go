// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

// Incoming is a blob whose bytes arrive from the upstream, in any order. Several goroutines may call WriteAt, ReadAt and
// Open concurrently. One goroutine calls Record, Commit, Keep, Discard and, after all others have ended, Close. Reserve and
// Account are called by one goroutine at a time.
type Incoming struct {
	store     *Store
	file      *volume.File
	digest    digest.Digest
	committed bool
	kept      *Progress // of Keep
	reserved  int64     // bytes of the size of the cache, which are released when the blob is stored, or by Close
}

// Receive returns the partial download with the digest and its progress, or a new one. Content with the digest is not
// evicted before Close. The caller calls Close, and before it Commit, Keep or Discard.
func (s *Store) Receive(d digest.Digest) (*Incoming, Progress, error) {
	if err := s.pin(d); err != nil {
		return nil, Progress{}, fmt.Errorf("creating blob %s: %w", d, err)
	}
	if kept, exists := s.partials.take(d); exists {
		f, progress, err := s.partials.reopen(kept.path, d)
		switch {
		case err == nil:
			return &Incoming{store: s, file: f, digest: d}, progress, nil
		case errors.Is(err, volume.ErrLocked): // another process uses it
		case volume.IsFailure(err):
			s.partials.put(d, kept)
		default:
			// It cannot be resumed, so its space is more useful.
			_ = s.removePartial(kept.path)
		}
	}
	f, err := s.create(d.Encoded() + "-")
	if err == nil {
		if err = lock(f); err != nil {
			err = errors.Join(err, f.Close(), s.discard(f.Name()))
		}
	}
	if err != nil {
		s.release(d)
		return nil, Progress{}, fmt.Errorf("creating blob %s: %w", d, err)
	}
	return &Incoming{store: s, file: f, digest: d}, Progress{Digest: d, Size: -1}, nil
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
// clients receive any byte. If the space is missing, and the blob can fit, other partial downloads and the least recently used
// content are deleted, which takes some seconds at most. A volume that does not support reservations is no error.
func (i *Incoming) Reserve(ctx context.Context, size int64) error {
	return i.makeRoom(ctx, size, func() error { return i.reserve(size) })
}

// Account is Reserve for a blob that is not downloaded completely, or whose size is unknown: it reserves size bytes within
// the size of the cache, but no space of the file system. size is the total of all calls.
func (i *Incoming) Account(ctx context.Context, size int64) error {
	return i.makeRoom(ctx, size, func() error { return i.account(size) })
}

// makeRoom calls try again after deletions while the volume is full. A full volume is no event for the collector here, because
// MakeRoom deletes as much as necessary.
func (i *Incoming) makeRoom(ctx context.Context, size int64, try func() error) error {
	before := i.reserved
	err := try()
	if collector := i.store.collector.get(); volume.IsFull(err) && collector.Fits(size) {
		for volume.IsFull(err) && i.store.partials.drop() {
			err = try()
		}
		if volume.IsFull(err) {
			err = collector.MakeRoom(ctx, size, size-before, try)
		}
	}
	if err != nil {
		i.store.collector.get().Release(i.reserved - before)
		i.reserved = before
		return fmt.Errorf("reserving %d bytes for blob %s: %w", size, i.digest, err)
	}
	return nil
}

// reserve reserves space within the size of the cache and on the file system. Without space on the file system, the former
// stays reserved.
func (i *Incoming) reserve(size int64) error {
	if err := i.account(size); err != nil {
		return err
	}
	return allocate(i.file, size)
}

// account reserves space within the size of the cache.
func (i *Incoming) account(size int64) error {
	more := size - i.reserved
	if more <= 0 {
		return nil
	}
	if err := i.store.collector.get().Reserve(more); err != nil {
		return err
	}
	i.reserved = size
	return nil
}

// unreserve releases the space within the size of the cache.
func (i *Incoming) unreserve() {
	i.store.collector.get().Release(i.reserved)
	i.reserved = 0
}

// Record writes the progress beside the file, so that a process that starts after a crash resumes there. After a crash
// of the machine the download begins anew: the bytes are synced by Store.Close only.
func (i *Incoming) Record(p Progress) error {
	content, err := record{Progress: p, Boot: i.store.partials.boot}.encode()
	if err == nil {
		err = i.store.write(i.file.Name()+recordSuffix, content, volatile)
	}
	if err != nil {
		return fmt.Errorf("recording the progress of blob %s: %w", i.digest, err)
	}
	return nil
}

// Commit stores the blob for the repositories. verified is the digest of its first size bytes, in bytes. Other bytes in the file,
// for example of an upstream that has first stated another size, are deleted.
func (i *Incoming) Commit(verified digest.Digest, size int64, repositories []string) error {
	if verified != i.digest {
		return fmt.Errorf("committing blob %s: %w: %s", i.digest, ErrDigestMismatch, verified)
	}
	if err := i.cut(size); err != nil {
		return fmt.Errorf("cutting blob %s to %d bytes: %w", i.digest, size, err)
	}
	if err := i.store.publish(i.digest, i.file, i.unreserve); err != nil {
		return fmt.Errorf("committing blob %s: %w", i.digest, err)
	}
	i.committed = true
	for _, repository := range repositories {
		// A power failure must not leave content without a link, which is deleted.
		if err := i.store.linkBlob(repository, i.digest, durable); err != nil {
			return err
		}
	}
	return errors.Join(i.store.discard(i.file.Name()+recordSuffix), i.store.partials.forget(i.digest))
}

// cut deletes bytes behind the size.
func (i *Incoming) cut(size int64) error {
	info, err := i.file.Stat()
	if err != nil || info.Size() <= size {
		return err
	}
	return i.file.Trim([][2]int64{{0, size}})
}

// Keep records the progress and keeps the file for the next call of Receive, also after a restart, see Record. Space of other
// bytes is released. After an error the file is not kept.
func (i *Incoming) Keep(p Progress) error {
	if err := i.Record(p); err != nil {
		return errors.Join(err, i.Discard())
	}
	// Not earlier, because the previous record can have other spans.
	if err := i.file.Trim(p.Spans); err != nil {
		return errors.Join(fmt.Errorf("releasing the unused space of blob %s: %w", i.digest, err), i.Discard())
	}
	i.kept = &p
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
	if i.kept != nil {
		// Not earlier, because the file is locked until it is closed.
		i.store.partials.add(*i.kept, i.file.Name())
		// The bytes are necessary if the stored file turns out to be corrupt.
		if _, stored := i.store.index.Size(i.digest); stored && !i.store.Withholds(i.digest) {
			err = errors.Join(err, i.store.partials.forget(i.digest))
		}
	}
	i.unreserve()
	i.store.release(i.digest)
	if err != nil {
		return fmt.Errorf("closing blob %s: %w", i.digest, err)
	}
	return nil
}
