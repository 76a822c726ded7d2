// SPDX-License-Identifier: Apache-2.0

// Package store reads and writes blobs, manifests and tags on a volume, in the layout of package layout. It deletes
// nothing on its own: package gc decides about deletions.
//
// A file below docker/registry/v2 is complete when it becomes visible: files are written in another directory of the
// volume, synced, and renamed. Responses wait for manifests, tags, and links to content of other repositories. Therefore
// these are synced later, or not at all: their digest shows whether a power failure has damaged them.
package store

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/moby/locker"
	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/store/layout"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/oci"
)

// Errors.
var (
	// ErrNotFound is wrapped by errors about content, links and tags that are not stored, or are corrupt.
	ErrNotFound = layout.ErrNotFound
	// ErrDigestMismatch is wrapped by errors about content that does not have the requested digest.
	ErrDigestMismatch = errors.New("the content has another digest")
)

// Options are the optional parts of a Store.
type Options struct {
	// Volume has the file system calls. Default: a new one that Close closes, with deadlines of one minute, for tests and
	// tools.
	Volume *volume.FS
	// Policy defines the order of eviction. Default: LRU without a TTL, which evicts nothing.
	Policy evict.Policy
	// Boot identifies the time since the last start of the machine. Default: the boot ID of the kernel. Tests set another one.
	Boot string
}

// Store is the content of one volume. It is safe for concurrent use. Repository names and tags must be valid by the
// grammar of package oci, because they become paths.
type Store struct {
	*contents
	syncer   *syncer
	problems *problems
	partials *partials
	close    func() // nil if the volume belongs to the caller
}

// Open returns the store in the directory root. It creates the directory if it is missing, and keeps the partial
// downloads of an earlier process for Receive. It succeeds on any volume: Problems reports the defects, and requests fail
// with the errors of the volume. It returns an error only if root is not an absolute path. The caller calls Close.
func Open(root string, o Options) (*Store, error) {
	if !filepath.IsAbs(root) {
		return nil, fmt.Errorf("opening store: %q must be an absolute path", root)
	}
	s := &Store{}
	if o.Policy == nil {
		o.Policy = evict.NewLRU(0)
	}
	if o.Volume == nil {
		o.Volume = volume.New(root, volume.Options{Timeout: time.Minute, SyncTimeout: time.Minute})
		s.close = o.Volume.Close
	}
	collector := newCollectorRef()
	files := &disk{
		fs:        o.Volume,
		layout:    layout.Root(root),
		reader:    layout.Reader{Root: layout.Root(root), FS: o.Volume},
		full:      func() { collector.get().Full() },
		undeleted: newUndeleted(),
	}
	s.problems = newProblems(files.layout)
	s.contents = &contents{
		disk:      files,
		tags:      newTags(files),
		index:     evict.NewIndex(o.Policy),
		collector: collector,
		fileLocks: locker.New(),
		verified:  newVerifications(),
	}
	s.syncer = newSyncer(files, s.problems.addFile)
	s.partials = newPartials(files, s.problems, cmp.Or(o.Boot, currentBoot()))
	s.prepare()
	return s, nil
}

// Close releases the resources of the store, and syncs the partial downloads. It waits for fsync calls, which have a deadline. Files that are
// still open stay usable only if Options.Volume was set.
func (s *Store) Close() {
	s.syncer.close()
	s.partials.sync()
	if s.close != nil {
		s.close()
	}
}

// Problems returns the problems of the volume that Open, or a scan of the volume, has found.
func (s *Store) Problems() []Problem { return s.problems.list() }

// Collector returns the collector of the store.
func (s *Store) Collector() Collector { return s.collector.get() }

// Check returns an error if the volume cannot be read.
func (s *Store) Check() error {
	_, err := s.fs.Stat(s.layout.Partials())
	if errors.Is(err, fs.ErrNotExist) {
		_, err = s.fs.Stat(string(s.layout))
	}
	return err
}

// Blob opens a blob of the repository. The caller closes it. Errors wrap ErrNotFound if the repository has no such blob.
func (s *Store) Blob(repository string, d digest.Digest) (*Content, error) {
	l := evict.Link{Kind: evict.Layer, Repository: repository}
	c, err := s.openPinned(d, func() error { return s.reader.CheckLink(l, d) })
	if err != nil {
		return nil, fmt.Errorf("opening blob %s@%s: %w", repository, d, err)
	}
	return c, nil
}

// Content opens content of any repository. The caller closes it, and must not send it to a client unless the upstream
// permits it. Errors wrap ErrNotFound if no such content is stored.
func (s *Store) Content(d digest.Digest) (*Content, error) {
	c, err := s.openPinned(d, func() error { return nil })
	if err != nil {
		return nil, fmt.Errorf("opening content %s: %w", d, err)
	}
	return c, nil
}

// Manifest returns a manifest of the repository after verification of its digest. Errors wrap ErrNotFound if the
// repository has no such manifest, or if it is corrupt.
func (s *Store) Manifest(repository string, d digest.Digest) ([]byte, error) {
	l := evict.Link{Kind: evict.Revision, Repository: repository}
	f, err := s.openPinned(d, func() error { return s.reader.CheckLink(l, d) })
	if err != nil {
		return nil, fmt.Errorf("reading manifest %s@%s: %w", repository, d, err)
	}
	defer f.Close()
	content, err := readManifest(f)
	if err == nil && digest.SHA256.FromBytes(content) != d {
		err = fmt.Errorf("%w: the content has another digest", ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("reading manifest %s@%s: %w", repository, d, err)
	}
	return content, nil
}

// readManifest reads a file with at most oci.MaxManifestSize bytes. It needs no more memory than that of the content.
func readManifest(f fs.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > oci.MaxManifestSize {
		return nil, fmt.Errorf("%w: the file has %d bytes", ErrNotFound, info.Size())
	}
	content := make([]byte, info.Size())
	_, err = io.ReadFull(f, content)
	return content, err
}

// UseManifest records the use of a manifest by a caller that already has its content. It returns false if the repository
// has no such manifest, or if that is unknown without access to the volume.
func (s *Store) UseManifest(repository string, d digest.Digest) bool {
	return s.index.Use(d, evict.Link{Kind: evict.Revision, Repository: repository}, s.collector.get().Now())
}

// Tag returns the digest that the last SetTag has set. Errors wrap ErrNotFound if there is none.
func (s *Store) Tag(repository, tag string) (digest.Digest, error) {
	return s.reader.ReadTag(repository, tag)
}

// SetTag points the tag to the digest. It writes nothing if the tag already does. It does not wait for an fsync: after a
// power failure the tag may be missing.
func (s *Store) SetTag(repository, tag string, d digest.Digest) error {
	if err := s.pin(d); err != nil {
		return fmt.Errorf("setting tag %s:%s: %w", repository, tag, err)
	}
	defer s.release(d)
	s.index.Link(d, evict.Link{Kind: evict.Tag, Repository: repository, Tag: tag})
	if err := s.tags.set(repository, tag, d); err != nil {
		return fmt.Errorf("setting tag %s:%s: %w", repository, tag, err)
	}
	return nil
}

// RemoveTag deletes the tag. A missing tag is no error.
func (s *Store) RemoveTag(repository, tag string) error { return s.tags.remove(repository, tag) }

// PutManifest stores a manifest of the repository. The content must have the digest. It does not wait for an fsync: after a
// power failure in the next seconds the manifest may be missing.
func (s *Store) PutManifest(repository string, d digest.Digest, content []byte) error {
	if digest.SHA256.FromBytes(content) != d {
		return fmt.Errorf("storing manifest %s@%s: %w", repository, d, ErrDigestMismatch)
	}
	if err := s.pin(d); err != nil {
		return fmt.Errorf("storing manifest %s@%s: %w", repository, d, err)
	}
	defer s.release(d)
	// A stored file may be corrupt, so its content is compared.
	if stored, err := s.reader.ReadManifest(d); err != nil || !bytes.Equal(stored, content) {
		if err := s.replace(d, func(path string) error { return s.write(path, content, volatile) }, func() {}); err != nil {
			return fmt.Errorf("storing manifest %s@%s: %w", repository, d, err)
		}
		s.syncer.add(s.layout.Data(d))
	}
	if err := s.link(evict.Link{Kind: evict.Revision, Repository: repository}, d, volatile); err != nil {
		return fmt.Errorf("linking manifest %s@%s: %w", repository, d, err)
	}
	return nil
}

// LinkBlob adds the content of another repository to the repository as a blob. It does not wait for an fsync.
func (s *Store) LinkBlob(repository string, d digest.Digest) error {
	return s.linkBlob(repository, d, volatile)
}

func (s *Store) linkBlob(repository string, d digest.Digest, durability durability) error {
	if err := s.pin(d); err != nil {
		return fmt.Errorf("linking blob %s@%s: %w", repository, d, err)
	}
	defer s.release(d)
	if err := s.link(evict.Link{Kind: evict.Layer, Repository: repository}, d, durability); err != nil {
		return fmt.Errorf("linking blob %s@%s: %w", repository, d, err)
	}
	return nil
}

// link writes a link of kind Layer or Revision. The caller has pinned the digest.
func (s *Store) link(l evict.Link, d digest.Digest, durability durability) error {
	// Recorded first, so that an incompletely written link is deleted with the content.
	s.index.Link(d, l)
	if s.reader.CheckLink(l, d) == nil {
		return nil
	}
	if err := s.write(s.layout.Link(l, d), []byte(d), durability); err != nil {
		s.index.MarkLinkUncertain(d, l)
		return err
	}
	if durability == volatile {
		s.syncer.add(s.layout.Link(l, d))
	}
	// A concurrent call may have failed and marked the link as uncertain.
	s.index.Link(d, l)
	return nil
}
