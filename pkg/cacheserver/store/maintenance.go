// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/store/layout"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

// Maintenance is the access of a garbage collector to a store. It is safe for concurrent use.
type Maintenance struct{ store *Store }

// Maintain returns the access for the collector, which receives the events of the store from now on. A store has one
// collector.
func (s *Store) Maintain(c Collector) Maintenance {
	s.collector.set(c)
	return Maintenance{s}
}

// Index returns the index of the store.
func (m Maintenance) Index() *evict.Index { return m.store.index }

// Reader returns access to the files of the volume.
func (m Maintenance) Reader() layout.Reader { return m.store.reader }

// Remove deletes the files of an object. Tags are deleted before other links, and links before content, so that after an
// interruption no link or tag refers to deleted content. The next scan finds the remaining files.
func (m Maintenance) Remove(v evict.Victim) error { return m.store.remove(v) }

// PruneContent deletes the directory of content without a file, unless a file was created concurrently.
func (m Maintenance) PruneContent(d digest.Digest) error {
	return m.prune(m.store.layout.Data(d), m.store.layout.Blobs())
}

// PruneLink deletes the directory of a link without a file, unless a file was created concurrently.
func (m Maintenance) PruneLink(d digest.Digest, l evict.Link) error {
	return m.prune(m.store.layout.Link(l, d), m.store.layout.Repositories())
}

func (m Maintenance) prune(path, root string) error {
	err := m.store.removeTemporary(path)
	m.store.disk.prune(filepath.Dir(path), root) // only empty directories
	return err
}

// RemoveCorruptTag deletes a tag that contains no digest.
func (m Maintenance) RemoveCorruptTag(l evict.Link) error {
	return m.store.tags.removeCorrupt(l.Repository, l.Tag)
}

// RemoveUploads deletes the partial downloads of a stock registry, and the directory of the repository if it is empty.
func (m Maintenance) RemoveUploads(repository string) error {
	err := m.store.fs.RemoveAll(m.store.layout.Uploads(repository))
	m.store.disk.prune(m.store.layout.Repository(repository), m.store.layout.Repositories())
	return err
}

// WriteFile replaces the content of a file by the output of the function.
func (m Maintenance) WriteFile(path string, write func(io.Writer) error) error {
	return m.store.writeWith(path, durable, write)
}

// RemoveFile deletes a file, which may be missing, and its temporary files of a stock registry.
func (m Maintenance) RemoveFile(path string) error {
	return errors.Join(m.store.removeIfExists(path), m.store.removeTemporary(path))
}

// PartialBytes returns the number of bytes of partial downloads that no Incoming uses. They are not in the index. The store
// deletes them if they leave no space for an Incoming.
func (m Maintenance) PartialBytes() int64 { return m.store.partials.total() }

// DiscardAgain deletes temporary files that could not be deleted because the volume failed.
func (m Maintenance) DiscardAgain() { m.store.discardAgain() }

// Statfs returns the usage of the file system.
func (m Maintenance) Statfs() (syscall.Statfs_t, error) {
	return m.store.fs.Statfs(string(m.store.layout))
}

// AddProblem records a problem of the volume that a scan has found. A nil error records nothing.
func (m Maintenance) AddProblem(path string, err error) { m.store.problems.addFile(path, err) }

// SetRecordedSizes sets the sizes that an earlier process has recorded, by digest. They are used for content that is not
// indexed yet. It must be called before the store is used.
func (m Maintenance) SetRecordedSizes(sizes map[digest.Digest]int64) { m.store.recorded = sizes }

// Open opens the file of content without a pin and without a use. The caller closes it.
func (m Maintenance) Open(d digest.Digest) (*volume.File, error) {
	return m.store.fs.Open(m.store.layout.Data(d))
}

// Verify is Store.Verify.
func (m Maintenance) Verify(ctx context.Context, f fs.File, d digest.Digest, pause func()) (bool, error) {
	return m.store.Verify(ctx, f, d, pause)
}
