// SPDX-License-Identifier: Apache-2.0

// Package pullthrough answers for manifests and blobs: from the store what is there, from the upstream what is not,
// keeping it. A client never gets less than the upstream would have given it because the store cannot be written.
package pullthrough

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"

	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/oci"
)

// Upstream is the registry that is cached. *upstream.Client is one; see there for the meaning of the methods.
type Upstream interface {
	HeadManifest(ctx context.Context, repository string, ref oci.Reference) (upstream.Descriptor, error)
	Manifest(ctx context.Context, repository string, ref oci.Reference) (*upstream.Manifest, error)
	HeadBlob(ctx context.Context, repository string, d digest.Digest) (int64, error)
	Blob(ctx context.Context, repository string, d digest.Digest, from upstream.Range) (*upstream.Blob, error)
	Tags(ctx context.Context, repository string, query url.Values) (*upstream.TagPage, error)
	Referrers(ctx context.Context, repository string, d digest.Digest, query url.Values) (*upstream.Referrers, error)
}

// Outcome says where an answer came from.
type Outcome string

// Outcomes.
const (
	// Hit: from the cache. For a tag or a list, the upstream was asked whether it still is what the cache has, at most
	// Options.RevalidateAfter ago.
	Hit Outcome = "hit"
	// Miss: from the upstream, and kept.
	Miss Outcome = "miss"
	// Stale: a tag or a list as it was, because the upstream could not say what it is now.
	Stale Outcome = "stale"
	// PassThrough: from the upstream, without being kept.
	PassThrough Outcome = "pass-through"
)

// Options are the optional parts of a Cache.
type Options struct {
	// RevalidateAfter is how long the upstream's answer about a tag, or a list, is used. 0 asks for each request.
	RevalidateAfter time.Duration
	// Logger gets what clients do not see, such as a volume that cannot be written. Default: discarded.
	Logger *slog.Logger
	// Registerer gets the metrics. Default: none.
	Registerer prometheus.Registerer
}

// Cache is the cache of one upstream. It is safe for concurrent use. Repositories and tags must be valid by the
// grammar of package oci.
type Cache struct {
	store           *store.Store
	upstream        Upstream
	revalidateAfter time.Duration
	log             *slog.Logger
	metrics         *metrics
	memory          *memory
	tags            *tagTable
	tagPages        *listTable[TagPage]
	referrers       *listTable[Referrers]
	resolutions     singleflight.Group
	manifests       singleflight.Group
	lists           singleflight.Group

	// lifetime ends with Close. What is shared by clients belongs to it instead of to the request that began it.
	lifetime context.Context
	end      context.CancelCauseFunc
	work     sync.WaitGroup

	mu      sync.Mutex // guards what follows, and calls of work.Go
	fetches map[digest.Digest]*fetch
	closed  bool
}

// New returns a cache. Close ends it.
func New(s *store.Store, u Upstream, o Options) *Cache {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Cache{
		store:           s,
		upstream:        u,
		revalidateAfter: o.RevalidateAfter,
		log:             o.Logger,
		metrics:         newMetrics(o.Registerer),
		memory:          newMemory(),
		tags:            newTagTable(o.RevalidateAfter),
		tagPages:        newListTable[TagPage](o.RevalidateAfter),
		referrers:       newListTable[Referrers](o.RevalidateAfter),
		fetches:         map[digest.Digest]*fetch{},
	}
	c.lifetime, c.end = context.WithCancelCause(context.Background())
	return c
}

// Close ends what goes on, drops what is unfinished, and returns when all of it is gone. Later requests that need the
// upstream fail.
func (c *Cache) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.end(errClosed)
	c.work.Wait()
}

// start runs f in a goroutine that Close waits for. It returns false when the cache is closed.
func (c *Cache) start(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.work.Go(f)
	return true
}

// shared returns what f returns, running it once for all that ask with the same key at a time. It goes on for the
// others when ctx ends.
func shared[T any](ctx context.Context, c *Cache, group *singleflight.Group, key string, f func(context.Context) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	results := make(chan result, 1)
	started := c.start(func() {
		value, err, _ := group.Do(key, func() (any, error) { return f(c.lifetime) })
		if err != nil {
			results <- result{err: err}
			return
		}
		results <- result{value: value.(T)}
	})
	var none T
	if !started {
		return none, errClosed
	}
	select {
	case r := <-results:
		return r.value, r.err
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
}

// warnUnstored logs that something could not be stored; a nil error says that it was.
func (c *Cache) warnUnstored(what, name string, err error) {
	if err != nil && !errors.Is(err, errClosed) {
		c.metrics.storageErrors.Inc()
		c.log.Warn("Cannot store object", "kind", what, "name", name, "error", err)
	}
}
