// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

// Drop deletes corrupt content, also while it is being read: its links first, then its file. The next request fetches it
// again. examined is the file that was found to be corrupt. If it was deleted or replaced since then, Drop deletes nothing.
// Reason is for the log.
func (c *contents) Drop(d digest.Digest, examined fs.FileInfo, reason string) error {
	defer c.lockFile(d)()
	return c.dropLocked(d, examined, reason)
}

// dropLocked is Drop for a caller that holds the lock of the file.
func (c *contents) dropLocked(d digest.Digest, examined fs.FileInfo, reason string) error {
	current, err := c.fs.Stat(c.layout.Data(d))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(examined, current) {
		return nil
	}
	// A corrupt file is not served, also while it is being deleted and if it cannot be deleted.
	c.withheld.add(d, examined, "its content is corrupt, and is not deleted yet")
	c.verified.forget(d)
	v, ok := c.index.Take(d, evict.Corrupt)
	if !ok {
		if _, indexed := c.index.Size(d); indexed {
			return nil // another goroutine is removing it
		}
		// It is not indexed yet, so its links are unknown. Links without content are evicted after the indexing.
		v = evict.Victim{Digest: d, Reason: evict.Corrupt}
	}
	err = c.remove(v)
	switch {
	case ok && err != nil:
		c.index.RemovalFailed(d)
		c.index.Retry(d)
	case ok:
		c.index.RemovalDone(d)
	}
	if err != nil {
		return fmt.Errorf("dropping %s: %w", d, err)
	}
	c.collector.get().Dropped(v, reason)
	return nil
}

// suspect withholds the file if it still is that of the digest, or if the volume cannot tell.
func (c *contents) suspect(d digest.Digest, info fs.FileInfo) {
	defer c.lockFile(d)()
	current, err := c.fs.Stat(c.layout.Data(d))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(info, current) {
		return
	}
	c.withheld.add(d, info, "a read of its file has failed, and it is examined")
}

// noteIntact notes that a verification which began at a time has found the file to be intact, unless it was replaced meanwhile.
func (c *contents) noteIntact(d digest.Digest, f fs.File, began time.Time) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	defer c.lockFile(d)()
	if current, err := c.fs.Stat(c.layout.Data(d)); err != nil || !os.SameFile(info, current) {
		return err
	}
	c.verified.add(d, began)
	c.withheld.releaseFile(d, info)
	return nil
}

// checkSize returns an error that wraps ErrNotFound, and drops the content, if the open file does not have the size that is
// indexed or recorded.
func (c *contents) checkSize(d digest.Digest, info fs.FileInfo) error {
	if _, differs := c.otherSize(d, info); !differs {
		return nil
	}
	// A goroutine that replaces the file updates the index after the rename.
	defer c.lockFile(d)()
	want, differs := c.otherSize(d, info)
	if !differs {
		return nil
	}
	reason := fmt.Sprintf("the file has %d bytes instead of %d", info.Size(), want)
	if err := c.dropLocked(d, info, reason); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrNotFound, reason, err)
	}
	return fmt.Errorf("%w: %s", ErrNotFound, reason)
}

// otherSize returns the size that is indexed or recorded, and whether it differs from that of the file.
func (c *contents) otherSize(d digest.Digest, info fs.FileInfo) (want int64, differs bool) {
	want, known := c.index.Size(d)
	if !known {
		want, known = c.recorded[d]
	}
	return want, known && want != info.Size()
}
