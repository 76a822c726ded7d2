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

	"github.com/registry-cache/extension/pkg/cacheserver/background"
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

	background *background.Group

	mu      sync.Mutex // guards fetches
	fetches map[digest.Digest]*fetch
}

// New returns a cache. Close ends it.
func New(s *store.Store, u Upstream, o Options) *Cache {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Cache{
		store:           s,
		upstream:        u,
		revalidateAfter: o.RevalidateAfter,
		log:             o.Logger,
		metrics:         newMetrics(o.Registerer),
		memory:          newMemory(),
		tags:            newTagTable(o.RevalidateAfter),
		tagPages:        newListTable[TagPage](o.RevalidateAfter),
		referrers:       newListTable[Referrers](o.RevalidateAfter),
		background:      background.New(),
		fetches:         map[digest.Digest]*fetch{},
	}
}

// Close ends what goes on, drops what is unfinished, and returns when all of it is gone. Later requests that need the
// upstream fail.
func (c *Cache) Close() { c.background.Close() }

// shared returns what f returns, running it once for all that ask with the same key at a time. It goes on for the
// others when ctx ends.
func shared[T any](ctx context.Context, c *Cache, group *singleflight.Group, key string, f func(context.Context) (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	answers := make(chan answer, 1)
	started := c.background.Go(func(background context.Context) {
		value, err, _ := group.Do(key, func() (any, error) { return f(background) })
		if err != nil {
			answers <- answer{err: err}
			return
		}
		answers <- answer{value: value.(T)}
	})
	var none T
	if !started {
		return none, background.ErrClosed
	}
	select {
	case a := <-answers:
		return a.value, a.err
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
}

// warnUnstored logs that something could not be stored; a nil error says that it was.
func (c *Cache) warnUnstored(what, name string, err error) {
	if err != nil && !errors.Is(err, background.ErrClosed) {
		c.metrics.storageErrors.Inc()
		c.log.Warn("Cannot store object", "kind", what, "name", name, "error", err)
	}
}
