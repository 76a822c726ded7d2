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
	digest  digest.Digest
	partial *store.Partial

	mu           sync.Mutex // guards what follows
	state        progress
	changed      chan struct{} // closed and replaced with each change of state
	repositories []string
	references   int // open readers, and the download itself
}

// progress is what readers can see of a fetch.
type progress struct {
	// size of the blob in bytes, -1 where it is not known.
	size int64
	// written bytes are in the file.
	written int64
	// verified says that all bytes are there and have the digest.
	verified bool
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
// repository may see it. The caller calls release. It returns nil when the blob cannot be stored now, or the cache is
// closed.
func (c *Cache) join(repository string, d digest.Digest) (f *fetch, allowed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, false
	}
	if f := c.fetches[d]; f != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.references++
		c.metrics.followers.Inc()
		return f, slices.Contains(f.repositories, repository)
	}
	f = &fetch{
		digest:       d,
		state:        progress{size: -1},
		changed:      make(chan struct{}),
		repositories: []string{repository},
		references:   2,
	}
	c.fetches[d] = f
	c.metrics.fetches.Inc()
	c.work.Go(func() { c.download(c.lifetime, f, repository) })
	return f, true
}

// download fills, verifies and commits the blob.
func (c *Cache) download(ctx context.Context, f *fetch, repository string) {
	err := c.transfer(ctx, f, repository)
	if err == nil {
		err = f.partial.Verify()
	}
	f.update(func(p *progress) { p.verified, p.err = err == nil, err })
	if err == nil {
		// The readers have all they need by now; what fails from here on costs another fetch at most.
		c.warnUnstored("blob", f.digest.String(), f.partial.Commit(f.allowed()))
	} else if !errors.Is(err, errStorage) {
		c.log.Warn("Cannot fetch blob", "repository", repository, "digest", f.digest, "error", err)
	}
	if f.partial != nil {
		if err := f.partial.Discard(); err != nil {
			c.log.Warn("Cannot remove an unfinished blob", "digest", f.digest, "error", err)
		}
	}
	c.mu.Lock()
	delete(c.fetches, f.digest)
	c.mu.Unlock()
	c.metrics.fetches.Dec()
	c.release(f)
}

// transfer copies the blob from the upstream to the file, going on where the upstream broke off.
func (c *Cache) transfer(ctx context.Context, f *fetch, repository string) error {
	partial, err := c.store.Create(f.digest)
	if err != nil {
		c.warnUnstored("blob", f.digest.String(), err)
		return errStorage
	}
	f.mu.Lock()
	f.partial = partial
	f.mu.Unlock()
	buffer := make([]byte, fetchBuffer)
	for stalls := 0; ; {
		before := f.progress().written
		err := c.copyFrom(ctx, f, repository, buffer)
		if err == nil || errors.Is(err, errStorage) || !isTemporary(err) {
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
func (c *Cache) copyFrom(ctx context.Context, f *fetch, repository string, buffer []byte) (err error) {
	blob, err := c.upstream.Blob(ctx, repository, f.digest, f.progress().written)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	size := blob.Size
	if known := f.progress().size; known >= 0 && size != known {
		return fmt.Errorf("fetching blob %s: the upstream gave its size as %d bytes, then as %d", f.digest, known, size)
	}
	f.update(func(p *progress) { p.size = size })
	for {
		n, err := blob.Read(buffer)
		if _, writeErr := f.partial.Write(buffer[:n]); writeErr != nil {
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

// await returns when bytes behind offset are readable, or the fetch has ended, or ctx has.
func (f *fetch) await(ctx context.Context, offset int64) (progress, error) {
	for {
		f.mu.Lock()
		state, changed := f.state, f.changed
		f.mu.Unlock()
		if state.readable() > offset || state.verified || state.err != nil {
			return state, nil
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
	last, partial := f.references == 0, f.partial
	f.mu.Unlock()
	if !last || partial == nil {
		return
	}
	if err := partial.Close(); err != nil {
		c.log.Warn("Cannot close a blob", "digest", f.digest, "error", err)
	}
}
