// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/moby/locker"
	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/store/layout"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

// Content is an open file with content. It is not evicted before Close, but it can be dropped because it is corrupt.
type Content struct {
	*volume.File
	contents *contents
	digest   digest.Digest
}

// Digest returns the digest of the content.
func (c *Content) Digest() digest.Digest { return c.digest }

// Close implements io.Closer.
func (c *Content) Close() error {
	err := c.File.Close()
	if errors.Is(err, os.ErrClosed) {
		return err
	}
	c.contents.release(c.digest)
	return err
}

// contents are the files with content of one volume, with their index. Content is pinned while it is open or being
// written, so that it is not evicted.
type contents struct {
	*disk
	tags      *tags
	index     *evict.Index
	collector *collectorRef
	// fileLocks has a lock for each digest whose file is being replaced or dropped.
	fileLocks *locker.Locker
	// corruptFiles has each file that was found to be corrupt and still exists, for example on a read-only volume, or that may
	// be corrupt, see Content.Suspect: digest -> fs.FileInfo. Such a file is not served. There is at most one for each object of
	// the volume.
	corruptFiles sync.Map
	verified     *verifications
	// recorded are sizes that an earlier process has recorded. They do not change after Maintenance.SetRecordedSizes.
	recorded map[digest.Digest]int64
}

// openPinned pins and opens content, unless allowed returns an error. Content that is being removed is not found: its removal
// can take long, and deletes its links first.
func (c *contents) openPinned(d digest.Digest, allowed func() error) (*Content, error) {
	if !c.index.TryPin(d, c.collector.get().Now()) {
		return nil, fmt.Errorf("%w: it is being deleted", ErrNotFound)
	}
	err := allowed()
	if err == nil {
		var f *volume.File
		if f, err = c.open(d); err == nil {
			return &Content{File: f, contents: c, digest: d}, nil
		}
	}
	c.release(d)
	return nil, err
}

func (c *contents) pin(d digest.Digest) { c.index.Pin(d, c.collector.get().Now()) }

func (c *contents) release(d digest.Digest) { c.index.Unpin(d, c.collector.get().Now()) }

// EmptyDigest is the digest of empty content.
const EmptyDigest = digest.Digest("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")

func (c *contents) open(d digest.Digest) (*volume.File, error) {
	f, err := c.fs.Open(c.layout.Data(d))
	if err != nil {
		return nil, layout.NotFound(err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%w: not a regular file", ErrNotFound)
	case info.Size() == 0 && d != EmptyDigest:
		// A power failure can leave an empty file if it was renamed without fsync.
		err = fmt.Errorf("%w: the file is empty", ErrNotFound)
	case c.isCorrupt(d, info):
		err = fmt.Errorf("%w: its content is corrupt and not deleted yet, or it may be corrupt", ErrNotFound)
	default:
		err = c.checkSize(d, info)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// publish makes f the file of the content. When it returns, a power failure can no longer revert that. f stays open. The caller
// has pinned the digest. stored is called when f is in the index.
func (c *contents) publish(d digest.Digest, f *volume.File, stored func()) error {
	// An fsync can take minutes, so it is outside of the lock.
	if err := c.finish(f, durable); err != nil {
		return err
	}
	if err := c.replace(d, func(path string) error { return c.place(f, path, durable) }, stored); err != nil {
		return err
	}
	return c.syncDir(c.layout.Data(d))
}

// replace calls write, which replaces the file of the content, and updates the index. It does so after an error, too, because
// write may have renamed the file before. stored is called after write was successful, when the file is in the index, and before
// the collector measures that. The caller has pinned the digest.
func (c *contents) replace(d digest.Digest, write func(path string) error, stored func()) error {
	defer c.lockFile(d)()
	path := c.layout.Data(d)
	err := write(path)
	c.verified.forget(d)
	if err == nil {
		c.corruptFiles.Delete(d)
	}
	if info, statErr := c.fs.Stat(path); statErr == nil {
		c.index.SetStored(d, info.Size())
		if err == nil {
			stored()
		}
		c.collector.get().Grown()
	}
	return err
}

// remove deletes the files of an object, see Maintenance.Remove.
func (c *contents) remove(v evict.Victim) error {
	links := slices.SortedFunc(slices.Values(v.Links), func(a, b evict.Link) int { return -cmp.Compare(a.Kind, b.Kind) })
	for _, l := range links {
		var err error
		if l.Kind == evict.Tag {
			err = c.tags.removeFor(l, v.Digest)
		} else {
			err = c.removeUpTo(c.layout.Link(l, v.Digest), c.layout.Repositories())
		}
		if err != nil {
			return fmt.Errorf("removing a link of repository %s: %w", l.Repository, err)
		}
	}
	err := c.removeUpTo(c.layout.Data(v.Digest), c.layout.Blobs())
	if err == nil {
		c.corruptFiles.Delete(v.Digest)
	} else {
		return fmt.Errorf("removing content: %w", err)
	}
	return nil
}
