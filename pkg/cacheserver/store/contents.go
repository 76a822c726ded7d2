// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/moby/locker"
	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

// contents are the files with content of one volume, with their index. Content is pinned while it is open or being
// written, so that it is not evicted.
type contents struct {
	*disk
	tags      *tags
	index     *evict.Index
	collector *collectorRef
	// fileLocks has a lock for each digest whose file is being replaced or dropped.
	fileLocks *locker.Locker
	withheld  withheld
	verified  *verifications
	// recorded are sizes that an earlier process has recorded. They do not change after Maintenance.SetRecordedSizes.
	recorded map[digest.Digest]int64
}

// pinTime bounds the wait for the removal of content that is to be written again. A removal needs some system calls, so that it
// takes longer only on a volume that is about to hang. Then the content is not stored, and the pull continues without it.
const pinTime = 2 * time.Second

// errRemoving is the error of a write after pinTime.
var errRemoving = fmt.Errorf("its removal takes more than %s", pinTime)

// pin prevents the eviction of content that is being written. The caller calls release unless it returns an error.
func (c *contents) pin(d digest.Digest) error {
	if !c.index.Pin(d, c.collector.get().Now(), pinTime) {
		return errRemoving
	}
	return nil
}

func (c *contents) release(d digest.Digest) { c.index.Unpin(d, c.collector.get().Now()) }

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
		c.withheld.release(d)
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
	if err != nil {
		return fmt.Errorf("removing content: %w", err)
	}
	c.withheld.release(v.Digest)
	return nil
}

// lockFile prevents other calls from replacing or dropping the file of a digest until unlock is called. Without this lock, Drop
// could delete the file that replaces the corrupt one: pins do not prevent the deletion of corrupt content.
func (c *contents) lockFile(d digest.Digest) (unlock func()) {
	c.fileLocks.Lock(d.String())
	return func() {
		if err := c.fileLocks.Unlock(d.String()); err != nil {
			panic(err) // the lock is held
		}
	}
}
