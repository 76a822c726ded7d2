// SPDX-License-Identifier: Apache-2.0

package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/background"
	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
)

// Blob is an answer with a blob.
type Blob struct {
	// Content is a *store.Content, which is a file, where the blob is stored. Where it is not, reads wait for the
	// upstream and end with an error instead of io.EOF if not all of the right bytes came. The caller closes it.
	Content io.ReadSeekCloser
	// Size is in bytes, -1 where the upstream does not tell; Content cannot be sought from its end then.
	Size    int64
	outcome func() result.Outcome
	shared  func() int64
	await   func(ctx context.Context, offset int64) error // nil where nothing has to be waited for
}

// NewBlob returns an answer whose outcome does not change.
func NewBlob(content io.ReadSeekCloser, size int64, outcome result.Outcome) *Blob {
	return &Blob{Content: content, Size: size, outcome: func() result.Outcome { return outcome }, shared: func() int64 { return 0 }}
}

// Outcome says where the content came from. It can change while Content is read.
func (b *Blob) Outcome() result.Outcome { return b.outcome() }

// Shared is how many of the bytes that were read of Content came from a fetch that another request had begun.
func (b *Blob) Shared() int64 { return b.shared() }

// Await returns nil when Content can be read from the offset on, and an *Error when it is known that it cannot. Bytes that
// the fetch would reach too late come straight from the upstream. If nothing is known after 20 s, which is less than
// clients wait for the header of an answer, it returns nil.
func (b *Blob) Await(ctx context.Context, offset int64) error {
	if b.await == nil {
		return nil
	}
	if err := b.await(ctx, offset); err != nil {
		return result.Explain(err)
	}
	return nil
}

// Blob opens a blob. What is stored for the repository needs no upstream. What is not is fetched once for all clients
// that ask meanwhile; it returns when the first bytes are there. ctx must live as long as the content is read. Errors
// are *Error.
func (c *Cache) Blob(ctx context.Context, repository string, d digest.Digest) (*Blob, error) {
	b, err := c.storedBlob(ctx, repository, d)
	if err == nil && b == nil {
		b, err = c.fetchBlob(ctx, repository, d)
	}
	if err != nil {
		return nil, result.Explain(err)
	}
	return b, nil
}

// StatBlob returns the size of a blob in bytes, -1 where the upstream does not tell, without fetching it. Errors are
// *Error.
func (c *Cache) StatBlob(ctx context.Context, repository string, d digest.Digest) (int64, result.Outcome, error) {
	if b := c.linkedBlob(repository, d); b != nil {
		return b.Size, result.Hit, b.Content.Close()
	}
	size, err := c.upstream.HeadBlob(ctx, repository, d)
	if err != nil {
		return 0, "", result.Explain(err)
	}
	return size, result.Miss, nil
}

// linkedBlob returns nil unless the blob is stored for the repository.
func (c *Cache) linkedBlob(repository string, d digest.Digest) *Blob {
	f, err := c.store.Blob(repository, d)
	return hit(c.whole(repository, d, f, err))
}

// whole returns a file of the store that was opened, and its size in bytes, or nil if that failed or parts are missing.
func (c *Cache) whole(repository string, d digest.Digest, f *store.Content, err error) (*store.Content, int64) {
	if err == nil {
		var info os.FileInfo
		if info, err = f.Stat(); err == nil && c.contradicts(d, info.Size()) {
			err = fmt.Errorf("the file has %d bytes, and an image wants another number of them", info.Size())
		}
		if err == nil {
			return f, info.Size()
		}
		err = errors.Join(err, f.Close())
	}
	if !errors.Is(err, store.ErrNotFound) {
		c.log.Warn("Cannot read blob", "repository", repository, "digest", d, "error", err)
	}
	return nil, 0
}

// hit returns a file as an answer, nil for none.
func hit(f *store.Content, size int64) *Blob {
	if f == nil {
		return nil
	}
	return NewBlob(f, size, result.Hit)
}

// storedBlob returns the blob if it is stored for the repository, or for another one and the upstream says that this
// one has it too. It returns nil where it must be fetched.
func (c *Cache) storedBlob(ctx context.Context, repository string, d digest.Digest) (*Blob, error) {
	if b := c.linkedBlob(repository, d); b != nil {
		return b, nil
	}
	if c.fetching(d) {
		return nil, nil
	}
	// A fetch may have ended between the two looks.
	if b := c.linkedBlob(repository, d); b != nil {
		return b, nil
	}
	f, err := c.store.Content(d)
	b := hit(c.whole(repository, d, f, err))
	if b == nil {
		return nil, nil
	}
	allowed, err := c.upstreamHas(ctx, repository, d)
	if err != nil || !allowed {
		return nil, errors.Join(err, b.Content.Close())
	}
	c.warnUnstored("blob", repository+"@"+d.String(), c.store.LinkBlob(repository, d))
	return b, nil
}

// upstreamHas asks whether the repository has a blob that the cache knows from another one. It returns false without
// an error where the upstream does not answer HEAD, which is no reason to believe that it would not answer GET.
func (c *Cache) upstreamHas(ctx context.Context, repository string, d digest.Digest) (bool, error) {
	_, err := c.upstream.HeadBlob(ctx, repository, d)
	if err != nil && !isNotFound(err) && !isTemporary(err) && ctx.Err() == nil {
		return false, nil
	}
	return err == nil, err
}

// fetchBlob returns the blob from a fetch, a new one or one that goes on.
func (c *Cache) fetchBlob(ctx context.Context, repository string, d digest.Digest) (*Blob, error) {
	f, allowed, began, hit := c.join(repository, d)
	if f == nil {
		return nil, background.ErrClosed
	}
	r := &reader{ctx: ctx, cache: c, repository: repository, digest: d, fetch: f, size: -1, foreign: !allowed, follower: !began, hit: hit}
	if !allowed {
		var err error
		if allowed, err = c.upstreamHas(ctx, repository, d); err != nil {
			return nil, errors.Join(err, r.Close())
		}
	}
	open := func() error { return r.passThrough(0) }
	if allowed {
		f.allow(repository)
		open = r.open
	}
	if err := open(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return &Blob{Content: r, Size: r.size, outcome: r.outcome, shared: func() int64 { return r.shared }, await: r.await}, nil
}
