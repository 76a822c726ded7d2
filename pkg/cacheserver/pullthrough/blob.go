// SPDX-License-Identifier: Apache-2.0

package pullthrough

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/blobs"
	"github.com/registry-cache/extension/pkg/cacheserver/download"
	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

// Blob opens a blob, of which part will be read. A stored blob needs no upstream. Any other is downloaded once for all
// clients. ctx must live as long as the blob is used; the caller closes it. Errors are *result.Error.
func (c *Cache) Blob(ctx context.Context, repository string, d digest.Digest, part download.Part) (blobs.Blob, error) {
	b, err := c.blobs.Open(ctx, repository, d, part)
	if err != nil {
		return nil, result.Explain(err)
	}
	return b, nil
}

// StatBlob returns the size of a blob in bytes, -1 if the upstream does not state it, without downloading it. Errors are
// *result.Error.
func (c *Cache) StatBlob(ctx context.Context, repository string, d digest.Digest) (int64, result.Outcome, error) {
	ctx, cancel := upstream.AnswerContext(ctx, time.Now(), "HEAD "+repository+"@"+d.String())
	defer cancel()
	size, outcome, err := c.blobs.Stat(ctx, repository, d)
	if err != nil {
		return 0, "", result.Explain(err)
	}
	return size, outcome, nil
}

// VerifyBlob compares a stored blob with its digest, unless that was done after since, and deletes it if it is corrupt. It
// returns a *result.Error if that takes too long for a request.
func (c *Cache) VerifyBlob(ctx context.Context, d digest.Digest, since time.Time) error {
	if err := c.blobs.Verify(ctx, d, since); err != nil {
		return result.Explain(err)
	}
	return nil
}

// ServedBlob notes that a client has read a blob, which is still open, or a part of it.
func (c *Cache) ServedBlob(b blobs.Blob) { c.blobs.Served(b) }

// UnreadableBlob handles an error of a read of a stored blob, which is still open: it is deleted if it is corrupt. It does not
// wait for that.
func (c *Cache) UnreadableBlob(b blobs.Blob, err error) { c.blobs.Unreadable(b, err) }
