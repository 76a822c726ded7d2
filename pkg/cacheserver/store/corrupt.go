// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

// verifyChunk is the number of bytes between two calls of pause.
const verifyChunk = 1 << 20

// corruption reads content to its end and returns the reason why it is corrupt, "" if it has the digest. A canceled ctx and
// a volume that does not respond prove nothing: then it returns an error. pause is called after each MiB.
func corruption(ctx context.Context, content io.Reader, d digest.Digest, pause func()) (reason string, _ error) {
	verifier := d.Verifier()
	var err error
	for err == nil && ctx.Err() == nil {
		_, err = io.CopyN(verifier, content, verifyChunk)
		pause()
	}
	switch {
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case errors.Is(err, volume.ErrHung):
		return "", err
	case err != io.EOF:
		return "it cannot be read: " + err.Error(), nil
	case !verifier.Verified():
		return "its content has another digest", nil
	}
	return "", nil
}

// Verify compares an open file of content with its digest, and calls drop, which is Store.Drop, if it is corrupt. It returns
// true if the content has the digest, and false without an error if the content was dropped or replaced. The caller keeps
// the file open until Verify returns, so that its inode number is not reused and Drop recognizes the file. Errors are those
// of drop and of stat, the cause of ctx, and errors that wrap volume.ErrHung.
func Verify(ctx context.Context, f fs.File, d digest.Digest, pause func(), drop func(digest.Digest, fs.FileInfo, string) error) (bool, error) {
	reason, err := corruption(ctx, f, d, pause)
	if err != nil {
		return false, fmt.Errorf("verifying %s: %w", d, err)
	}
	if reason == "" {
		return true, nil
	}
	info, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("dropping %s: %s: %w", d, reason, err)
	}
	return false, drop(d, info, reason)
}

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

// Unreadable drops the content after a failed read. It also reports the error to the volume, which does not see errors of
// sendfile. It must be called before Close.
func (c *Content) Unreadable(readErr error) error {
	c.contents.fs.ReportRead(readErr)
	reason := "it cannot be read: " + readErr.Error()
	examined, err := c.Stat()
	if err != nil {
		return fmt.Errorf("dropping %s: %s: %w", c.digest, reason, err)
	}
	return c.contents.Drop(c.digest, examined, reason)
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
