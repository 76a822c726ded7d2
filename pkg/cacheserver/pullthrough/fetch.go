// SPDX-License-Identifier: Apache-2.0

package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

const (
	fetchBuffer = 128 << 10
	// maxStalls is how often in a row an upstream may break off without having sent anything.
	maxStalls = 3
)

// errStorage ends a fetch whose bytes could not be stored. Readers go on without it.
var errStorage = errors.New("the volume cannot be written")

// fetch is the download of one blob into the store. It belongs to the cache: it goes on when its readers leave.
type fetch struct {
	digest digest.Digest
	etag   string // of the upstream's last answer; the download alone uses it

	mu           sync.Mutex // guards what follows
	file         content    // nil until there can be bytes
	state        progress
	changed      chan struct{} // closed and replaced with each change of state
	repositories []string
	references   int // open readers, and the download itself
}

// content is a file that may still grow.
type content interface {
	io.ReaderAt
	io.Closer
}

// progress is what readers can see of a fetch.
type progress struct {
	// size of the blob in bytes, -1 where it is not known.
	size int64
	// written bytes are in the file.
	written int64
	// verified says that all bytes are there and have the digest.
	verified bool
	// stored says that they were there before the fetch.
	stored bool
	// err ends a fetch that is not verified.
	err error
}

// readable returns the number of bytes that may be given to clients. The last one stays back until the digest is
// verified, so that wrong content never looks complete.
func (p progress) readable() int64 {
	if p.verified || p.size < 0 {
		return p.written
	}
	return min(p.written, max(p.size-1, 0))
}

// join returns the fetch of the digest, beginning it for the repository unless it is there. It says whether the
// repository may see it, whether this call began it, and whether nothing has to come from the upstream any more. The
// caller calls release. It returns nil when the cache is closed.
func (c *Cache) join(repository string, d digest.Digest) (f *fetch, allowed, began, hit bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.fetches[d]; f != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.references++
		if !f.state.verified {
			c.metrics.followers.Inc()
		}
		return f, slices.Contains(f.repositories, repository), false, f.state.verified
	}
	f = &fetch{
		digest:       d,
		state:        progress{size: -1},
		changed:      make(chan struct{}),
		repositories: []string{repository},
		references:   2,
	}
	if !c.background.Go(func(ctx context.Context) { c.download(ctx, f, repository) }) {
		return nil, false, false, false
	}
	c.fetches[d] = f
	c.metrics.fetches.Inc()
	return f, true, true, false
}

// fetching says whether a fetch of the digest goes on.
func (c *Cache) fetching(d digest.Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fetches[d] != nil
}

// download fills, verifies and commits the blob.
func (c *Cache) download(ctx context.Context, f *fetch, repository string) {
	// Another fetch may have ended between the look into the store and the beginning of this one.
	if !c.adopt(f, repository) {
		c.fill(ctx, f, repository)
	}
	c.mu.Lock()
	delete(c.fetches, f.digest)
	c.mu.Unlock()
	c.metrics.fetches.Dec()
	c.release(f)
}

// adopt serves the readers from the store if the blob is there.
func (c *Cache) adopt(f *fetch, repository string) bool {
	opened, err := c.store.Blob(repository, f.digest)
	file, size := c.whole(repository, f.digest, opened, err)
	if file == nil {
		return false
	}
	f.mu.Lock()
	f.file = file
	f.mu.Unlock()
	f.update(func(p *progress) {
		*p = progress{size: size, written: size, verified: true, stored: true}
	})
	return true
}

// fill gets the blob from the upstream.
func (c *Cache) fill(ctx context.Context, f *fetch, repository string) {
	partial, err := c.store.Create(f.digest)
	if err != nil {
		c.warnUnstored("blob", f.digest.String(), err)
		f.update(func(p *progress) { p.err = errStorage })
		return
	}
	f.mu.Lock()
	f.file = partial
	f.mu.Unlock()
	if err = c.transfer(ctx, f, partial, repository); err == nil {
		err = partial.Verify()
	}
	f.update(func(p *progress) { p.verified, p.err = err == nil, err })
	if err == nil {
		c.manifests.Verified(f.digest, f.progress().written)
		// The readers have all they need by now; what fails from here on costs another fetch at most.
		c.warnUnstored("blob", f.digest.String(), partial.Commit(f.allowed()))
	} else if !errors.Is(err, errStorage) {
		c.log.Warn("Cannot fetch blob", "repository", repository, "digest", f.digest, "error", err)
	}
	if err := partial.Discard(); err != nil {
		c.log.Warn("Cannot remove an unfinished blob", "digest", f.digest, "error", err)
	}
}

// transfer copies the blob from the upstream to the file, going on where the upstream broke off.
func (c *Cache) transfer(ctx context.Context, f *fetch, partial *store.Partial, repository string) error {
	buffer := make([]byte, fetchBuffer)
	for stalls := 0; ; {
		before := f.progress().written
		err := c.copyFrom(ctx, f, partial, repository, buffer)
		if err == nil || !isBreak(err) {
			return err
		}
		switch after := f.progress().written; {
		case after > before:
			stalls = 0
		case after == 0:
			// Nothing was sent to any client, so the error can still be told.
			return err
		default:
			stalls++
		}
		if stalls >= maxStalls {
			return err
		}
	}
}

// copyFrom gets the blob from the first missing byte on.
func (c *Cache) copyFrom(ctx context.Context, f *fetch, partial *store.Partial, repository string, buffer []byte) (err error) {
	blob, err := c.blobFrom(ctx, repository, f.digest, upstream.Range{Offset: f.progress().written, IfRange: f.etag})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	f.etag = blob.ETag
	size := blob.Size
	if known := f.progress().size; known >= 0 && size != known {
		return fmt.Errorf("fetching blob %s: the upstream gave its size as %d bytes, then as %d", f.digest, known, size)
	}
	if f.progress().size < 0 && size > 0 {
		if err := partial.Reserve(ctx, size); err != nil {
			c.warnUnstored("blob", f.digest.String(), err)
			return errStorage
		}
	}
	f.update(func(p *progress) { p.size = size })
	for {
		n, err := blob.Read(buffer)
		if _, writeErr := partial.Write(buffer[:n]); writeErr != nil {
			c.warnUnstored("blob", f.digest.String(), writeErr)
			return errStorage
		}
		if n > 0 {
			f.update(func(p *progress) { p.written += int64(n) })
		}
		written := f.progress().written
		switch {
		case written == size, err == io.EOF && size < 0:
			return nil
		case err == io.EOF:
			return &upstream.Error{Op: "GET " + f.digest.String(), Err: fmt.Errorf("%w after %d of %d bytes", io.ErrUnexpectedEOF, written, size)}
		case err != nil:
			return err
		}
	}
}

// blobFrom returns a body that begins at the offset of the range.
func (c *Cache) blobFrom(ctx context.Context, repository string, d digest.Digest, part upstream.Range) (*upstream.Blob, error) {
	blob, err := c.upstream.Blob(ctx, repository, d, part)
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, blob, part.Offset-blob.Offset); err != nil {
		return nil, errors.Join(err, blob.Close())
	}
	return blob, nil
}

// allow lets readers of another repository see the blob, which is then stored for that one too.
func (f *fetch) allow(repository string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Contains(f.repositories, repository) {
		f.repositories = append(f.repositories, repository)
	}
}

func (f *fetch) allowed() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.repositories)
}

func (f *fetch) progress() progress {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

func (f *fetch) update(change func(*progress)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.state)
	close(f.changed)
	f.changed = make(chan struct{})
}

// source returns the file with the bytes that are readable.
func (f *fetch) source() content {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.file
}

// await returns when bytes behind offset are readable, or the fetch has ended, or ctx has.
func (f *fetch) await(ctx context.Context, offset int64) (progress, error) {
	for {
		f.mu.Lock()
		state, changed := f.state, f.changed
		f.mu.Unlock()
		if state.readable() > offset || state.verified || state.err != nil {
			return state, nil //nolint:nilerr // the caller reads the error of the fetch from state
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return state, context.Cause(ctx)
		}
	}
}

// release gives up a reference; the last one closes the file.
func (c *Cache) release(f *fetch) {
	f.mu.Lock()
	f.references--
	last, file := f.references == 0, f.file
	f.mu.Unlock()
	if !last || file == nil {
		return
	}
	if err := file.Close(); err != nil {
		c.log.Warn("Cannot close a blob", "digest", f.digest, "error", err)
	}
}
