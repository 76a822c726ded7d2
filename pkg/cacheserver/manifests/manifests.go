// SPDX-License-Identifier: Apache-2.0

// Package manifests returns manifests by digest and by tag, from the store or from the upstream.
//
// A tag is resolved to a digest first. The upstream's answer is used for some seconds (Options.RevalidateAfter) if the image is
// stored completely. The manifest with this digest comes from the store, otherwise from the upstream. While the upstream
// fails, the last answer about a tag is used for a limited time (Options.MaxStale).
package manifests

import (
	"context"
	"log/slog"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/answers"
	"github.com/registry-cache/extension/pkg/cacheserver/background"
	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/oci"
)

// Upstream is the part of *upstream.Client for manifests. Errors about the upstream are *upstream.Error.
type Upstream interface {
	// HeadManifest returns the descriptor of a manifest. Each field may be missing: an empty digest or media type, and a
	// negative size.
	HeadManifest(ctx context.Context, repository string, ref oci.Reference) (upstream.Descriptor, error)
	// Manifest returns a manifest with verified content.
	Manifest(ctx context.Context, repository string, ref oci.Reference) (*upstream.Manifest, error)
}

// Store is the part of *store.Store for manifests and tags. Its errors wrap store.ErrNotFound if the content is not stored.
type Store interface {
	// Manifest returns the verified content of a manifest of the repository.
	Manifest(repository string, d digest.Digest) ([]byte, error)
	// UseManifest records a use of a manifest. It returns false if the repository may not have the manifest.
	UseManifest(repository string, d digest.Digest) bool
	PutManifest(repository string, d digest.Digest, content []byte) error
	// Has reports that content is stored, without access to the volume.
	Has(d digest.Digest) bool
	// Tag returns the digest of the last call of SetTag.
	Tag(repository, tag string) (digest.Digest, error)
	SetTag(repository, tag string, d digest.Digest) error
	// TagTime returns the time of the last change by SetTag or TouchTag.
	TagTime(repository, tag string) (time.Time, error)
	TouchTag(repository, tag string, t time.Time) error
}

// Options are the properties of Manifests.
type Options struct {
	// RevalidateAfter is the time in which the upstream's answer about a tag is used for all requests if the image is stored
	// completely. 0 requests the upstream for each request.
	RevalidateAfter time.Duration
	// MaxStale is the time after the last answer of the upstream about a tag in which this answer is used while the upstream
	// fails. 0 disables the use of old answers.
	MaxStale time.Duration
	// Unstored is called for each object that cannot be stored. kind is "manifest" or "tag". Default: errors are logged.
	Unstored func(kind, name string, err error)
	// Logger receives problems that clients do not see. Default: discarded.
	Logger *slog.Logger
}

// Manifest is an answer with a manifest.
type Manifest struct {
	Digest    digest.Digest
	MediaType string
	// Size is in bytes.
	Size int64
	// Content must not be modified. It is nil if Stat has returned a manifest that is not stored.
	Content []byte
	Outcome result.Outcome
}

// Manifests are the manifests and tags of one upstream. It is safe for concurrent use. Repositories and tags must be valid
// by the grammar of package oci.
type Manifests struct {
	upstream Upstream
	contents *contents
	tags     *tags
	blobs    *blobs
	fetches  *background.Coalescer[string, *Manifest]
}

// New returns the manifests of an upstream. Requests to the upstream belong to group.
func New(group *background.Group, s Store, u Upstream, o Options) *Manifests {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Unstored == nil {
		o.Unstored = func(kind, name string, err error) {
			o.Logger.Warn("Cannot store object", "kind", kind, "name", name, "error", err)
		}
	}
	blobs := newBlobs(group, u)
	contents := newContents(s, blobs, o)
	return &Manifests{
		upstream: u,
		contents: contents,
		tags:     newTags(group, s, u, contents, o),
		blobs:    blobs,
		fetches:  background.NewCoalescer[string, *Manifest](group),
	}
}

// Get returns a manifest with its content. A stored manifest is returned by digest without the upstream. Errors are
// *result.Error.
func (m *Manifests) Get(ctx context.Context, repository string, ref oci.Reference) (*Manifest, error) {
	found, err := m.get(ctx, repository, ref)
	if err != nil {
		return nil, result.Explain(err)
	}
	return found, nil
}

// Stat returns a manifest for clients that do not need its content. It downloads a manifest only if the upstream does not
// describe it completely, or if the digest of a tag comes from an earlier answer. Errors are *result.Error.
func (m *Manifests) Stat(ctx context.Context, repository string, ref oci.Reference) (*Manifest, error) {
	found, err := m.stat(ctx, repository, ref)
	if err != nil {
		return nil, result.Explain(err)
	}
	return found, nil
}

func (m *Manifests) get(ctx context.Context, repository string, ref oci.Reference) (*Manifest, error) {
	if ref.Digest != "" {
		return m.storedOrFetched(ctx, repository, ref.Digest)
	}
	tag, err := m.tags.resolve(ctx, repository, ref.Tag)
	if err != nil {
		return nil, err
	}
	if tag.manifest != nil {
		return tag.manifest, nil
	}
	found, err := m.storedOrFetched(ctx, repository, tag.descriptor.Digest)
	if isNotFound(err) {
		// The upstream has moved the tag and deleted the previous manifest.
		return m.fetch(ctx, repository, ref)
	}
	return withTagOutcome(found, tag), err
}

func (m *Manifests) stat(ctx context.Context, repository string, ref oci.Reference) (*Manifest, error) {
	if ref.Digest != "" {
		return m.statDigest(ctx, repository, ref)
	}
	tag, err := m.tags.resolve(ctx, repository, ref.Tag)
	if err != nil {
		return nil, err
	}
	if tag.manifest != nil {
		return tag.manifest, nil
	}
	if found, ok := m.contents.stored(repository, tag.descriptor.Digest); ok {
		return withTagOutcome(found, tag), nil
	}
	if tag.outcome == result.Hit {
		// The client will get the manifest by digest, but the upstream may have deleted it since the answer. Unlike a check
		// with HEAD, a fetch is shared with all clients that get the manifest.
		found, err := m.fetch(ctx, repository, oci.Reference{Digest: tag.descriptor.Digest})
		if err == nil {
			return found, nil
		}
		if isNotFound(err) {
			if tag, err = m.tags.resolve(ctx, repository, ref.Tag); err != nil {
				return nil, err
			}
		}
	}
	if isComplete(tag.descriptor) {
		return withTagOutcome(described(tag.descriptor), tag), nil
	}
	found, err := m.storedOrFetched(ctx, repository, tag.descriptor.Digest)
	return withTagOutcome(found, tag), err
}

func (m *Manifests) statDigest(ctx context.Context, repository string, ref oci.Reference) (*Manifest, error) {
	if found, ok := m.contents.stored(repository, ref.Digest); ok {
		return found, nil
	}
	d, err := m.upstream.HeadManifest(ctx, repository, ref)
	if err != nil && !isUnsupported(err) {
		m.forgetIfMissing(repository, ref.Digest, err)
		return nil, err
	}
	// An incomplete answer, and one about another manifest, is replaced by the manifest itself.
	if err == nil && d.Digest == ref.Digest && isComplete(d) {
		return described(d), nil
	}
	return m.fetch(ctx, repository, ref)
}

func (m *Manifests) storedOrFetched(ctx context.Context, repository string, d digest.Digest) (*Manifest, error) {
	if found, ok := m.contents.stored(repository, d); ok {
		return found, nil
	}
	return m.fetch(ctx, repository, oci.Reference{Digest: d})
}

// fetch gets a manifest from the upstream, once for concurrent calls, and stores it with all tags that name it.
func (m *Manifests) fetch(ctx context.Context, repository string, ref oci.Reference) (*Manifest, error) {
	return m.fetches.Do(ctx, ref.In(repository), func(ctx context.Context) (*Manifest, error) {
		if ref.Digest != "" {
			// Another call may have stored it in the meantime.
			if found, ok := m.contents.stored(repository, ref.Digest); ok {
				return found, nil
			}
		}
		got, err := m.upstream.Manifest(ctx, repository, ref)
		if err != nil {
			m.forgetIfMissing(repository, ref.Digest, err)
			return nil, err
		}
		found := m.contents.keep(repository, got)
		if ref.Tag != "" {
			m.tags.confirm(repository, ref.Tag, descriptorOf(found))
		}
		if found.Outcome == result.Miss {
			m.tags.store(repository, got.Digest)
		}
		return found, nil
	})
}

// forgetIfMissing removes the answers about tags that name a deleted manifest, so that the next request resolves these tags
// again.
func (m *Manifests) forgetIfMissing(repository string, d digest.Digest, err error) {
	if d != "" && isNotFound(err) {
		m.tags.forget(repository, d)
	}
}

// ExpectedSize returns the size of a blob according to the manifests that were read, in bytes. It returns false if no
// manifest names the blob, or if manifests contradict each other. The number of blobs is limited.
func (m *Manifests) ExpectedSize(d digest.Digest) (int64, bool) { return m.blobs.expectedSize(d) }

// Verified sets the size of content with a verified digest, in bytes. It has priority over the manifests.
func (m *Manifests) Verified(d digest.Digest, size int64) { m.blobs.verified(d, size) }

// Import requests the manifest of the repository that names a blob, after the upstream has returned 404 for the blob. An
// upstream that is a cache itself imports an image when its manifest is requested. Import returns true if the upstream has
// returned the manifest within the last minute; the caller then requests the blob once more. It returns false without an
// error if no manifest with this blob was read.
//
// If the upstream has deleted the manifest, too, the tags of the image are resolved again by the next request.
func (m *Manifests) Import(ctx context.Context, repository string, blob digest.Digest) (requested bool, err error) {
	requested, err = m.blobs.requestOwner(ctx, repository, blob)
	if isNotFound(err) {
		for _, d := range m.blobs.ownersOf(repository, blob) {
			m.tags.forget(repository, d)
		}
	}
	return requested, err
}

// withTagOutcome returns a manifest as the answer to a request by tag. It returns nil for nil.
func withTagOutcome(found *Manifest, tag resolution) *Manifest {
	if found == nil || tag.outcome != result.Stale {
		return found
	}
	stale := *found
	stale.Outcome = result.Stale
	return &stale
}

func isComplete(d upstream.Descriptor) bool { return d.Size >= 0 && d.MediaType != "" }

func described(d upstream.Descriptor) *Manifest {
	return &Manifest{Digest: d.Digest, MediaType: d.MediaType, Size: d.Size, Outcome: result.Miss}
}

func isNotFound(err error) bool {
	class, _ := answers.Classify(err)
	return class == answers.Negative
}
