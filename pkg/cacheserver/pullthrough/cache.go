// SPDX-License-Identifier: Apache-2.0

// Package pullthrough is the pull-through cache of one upstream: stored content comes from the store, other content from the
// upstream, and is stored. A client receives everything that the upstream returns, also if the store cannot be written.
package pullthrough

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/registry-cache/extension/pkg/cacheserver/background"
	"github.com/registry-cache/extension/pkg/cacheserver/blobs"
	"github.com/registry-cache/extension/pkg/cacheserver/download"
	"github.com/registry-cache/extension/pkg/cacheserver/manifests"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/oci"
)

// Upstream is the client of the upstream. *upstream.Client implements it and documents the methods.
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
	// RevalidateAfter is the time in which the upstream's answer about a tag or a list is used for all requests. 0 requests
	// the upstream for each request.
	RevalidateAfter time.Duration
	// MaxStale is the time after the last answer of the upstream about a tag or a list in which this answer is used while the
	// upstream fails. 0 disables the use of old answers.
	MaxStale time.Duration
	// Logger receives problems that clients do not see, such as errors of the volume. Default: discarded.
	Logger *slog.Logger
	// Registerer receives the metrics. Default: none.
	Registerer prometheus.Registerer
}

// Cache is the cache of one upstream. It is safe for concurrent use. Repositories and tags must be valid by the grammar of
// package oci.
type Cache struct {
	log        *slog.Logger
	metrics    *metrics
	background *background.Group
	manifests  *manifests.Manifests
	lists      *lists
	blobs      *blobs.Blobs
}

// New returns a cache. The caller calls Close.
func New(s *store.Store, u Upstream, o Options) *Cache {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Cache{
		log:        o.Logger,
		metrics:    newMetrics(o.Registerer),
		background: background.New(),
	}
	c.manifests = manifests.New(c.background, s, u, manifests.Options{
		RevalidateAfter: o.RevalidateAfter,
		MaxStale:        o.MaxStale,
		Unstored:        c.warnUnstored,
		Logger:          o.Logger,
	})
	c.lists = newLists(c.background, u, o)
	downloads := download.New(s, u, c.background, download.Options{
		ExpectedSize: c.manifests.ExpectedSize,
		Verified:     c.manifests.Verified,
		Import:       c.manifests.Import,
		Unstored:     func(d digest.Digest, err error) { c.warnUnstored("blob", d.String(), err) },
		Logger:       o.Logger,
		Registerer:   o.Registerer,
	})
	c.blobs = blobs.New(s, u, downloads, c.background, blobs.Options{
		ExpectedSize: c.manifests.ExpectedSize,
		Unstored:     func(name string, err error) { c.warnUnstored("blob", name, err) },
		Logger:       o.Logger,
	})
	return c
}

// Close cancels all work in progress, discards unfinished content and waits. Later requests that need the upstream fail.
func (c *Cache) Close() { c.background.Close() }

// Manifest returns a manifest with its content, see manifests.Manifests.Get.
func (c *Cache) Manifest(ctx context.Context, repository string, ref oci.Reference) (*manifests.Manifest, error) {
	ctx, cancel := upstream.AnswerContext(ctx, time.Now(), "GET "+ref.In(repository))
	defer cancel()
	return c.manifests.Get(ctx, repository, ref)
}

// StatManifest returns a manifest, if possible without downloading it, see manifests.Manifests.Stat.
func (c *Cache) StatManifest(ctx context.Context, repository string, ref oci.Reference) (*manifests.Manifest, error) {
	ctx, cancel := upstream.AnswerContext(ctx, time.Now(), "HEAD "+ref.In(repository))
	defer cancel()
	return c.manifests.Stat(ctx, repository, ref)
}

// Tags returns a page of the tags of a repository, see lists.tagPage. Errors are *result.Error.
func (c *Cache) Tags(ctx context.Context, repository string, query url.Values) (*TagPage, error) {
	ctx, cancel := upstream.AnswerContext(ctx, time.Now(), "GET the tags of "+repository)
	defer cancel()
	return c.lists.tagPage(ctx, repository, query)
}

// Referrers returns a page of the manifests that refer to the manifest with the digest, see lists.referrersPage. Errors are
// *result.Error.
func (c *Cache) Referrers(ctx context.Context, repository string, d digest.Digest, query url.Values) (*Referrers, error) {
	ctx, cancel := upstream.AnswerContext(ctx, time.Now(), "GET the referrers of "+repository+"@"+d.String())
	defer cancel()
	return c.lists.referrersPage(ctx, repository, d, query)
}

// warnUnstored reports that an object could not be stored. It ignores nil and the end of the cache.
func (c *Cache) warnUnstored(kind, name string, err error) {
	if err != nil && !errors.Is(err, background.ErrClosed) {
		c.metrics.storageErrors.Inc()
		c.log.Warn("Cannot store object", "kind", kind, "name", name, "error", err)
	}
}
