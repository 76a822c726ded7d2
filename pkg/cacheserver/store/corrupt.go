// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
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
	c.corruptFiles.Store(d, examined)
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

// isCorrupt reports that the file was found to be corrupt. It is being deleted, or could not be deleted.
func (c *contents) isCorrupt(d digest.Digest, info fs.FileInfo) bool {
	corrupt, known := c.corruptFiles.Load(d)
	return known && os.SameFile(corrupt.(fs.FileInfo), info)
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

// Suspect notes that a read of the content has failed, so that the file is not served until Examine has found it to be intact.
// It also reports the error to the volume, which does not see errors of sendfile. It must be called before Close.
func (c *Content) Suspect(readErr error) error {
	c.contents.fs.ReportRead(readErr)
	info, err := c.Stat()
	if err != nil {
		return fmt.Errorf("examining %s: %w", c.digest, err)
	}
	c.contents.corruptFiles.Store(c.digest, info)
	return nil
}

const (
	// examinations bounds the attempts of Examine, and firstExaminationPause is the time between the first two of them. It doubles
	// up to maxExaminationPause, so that the attempts last about 8 minutes: volumes that fail are usable again after some time.
	examinations          = 20
	firstExaminationPause = time.Second
	maxExaminationPause   = 30 * time.Second
)

// Examine verifies content after Suspect: it drops a corrupt file, and serves an intact one again. It repeats that for some
// minutes while the volume fails, but not if only the deletion fails. After an error the file is not served until another download replaces it.
func (c *contents) Examine(ctx context.Context, d digest.Digest) error {
	pause := firstExaminationPause
	for attempt := 1; ; attempt++ {
		err := c.examine(ctx, d)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if attempt == examinations || errors.Is(err, errNotDropped) {
			return err
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, maxExaminationPause)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (c *contents) examine(ctx context.Context, d digest.Digest) (err error) {
	f, err := c.fs.Open(c.layout.Data(d))
	if err != nil {
		return fmt.Errorf("examining %s: %w", d, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil || !c.isCorrupt(d, info) {
		return err // or it was replaced, or examined meanwhile
	}
	_, err = c.Verify(ctx, f, d, func() {})
	return err
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
	if c.isCorrupt(d, info) {
		c.corruptFiles.Delete(d)
	}
	return nil
}

// Served notes that a client has read the content, or a part of it. If the last verification is not recent, the content is
// compared with its digest in the background, and dropped if it is corrupt, so that other clients do not receive it. It does
// not block.
func (c *Content) Served() { c.contents.collector.get().Served(c.digest) }

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
