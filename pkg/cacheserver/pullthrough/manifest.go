// SPDX-License-Identifier: Apache-2.0

package pullthrough

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/oci"
)

// Manifest is an answer about a manifest.
type Manifest struct {
	Digest    digest.Digest
	MediaType string
	// Size is in bytes.
	Size int64
	// Content is nil in an answer of StatManifest that the upstream gave.
	Content []byte
	Outcome result.Outcome
}

// Manifest returns a manifest with its content. A digest that is stored needs no upstream; a tag is revalidated.
// Errors are *Error.
func (c *Cache) Manifest(ctx context.Context, repository string, ref oci.Reference) (*Manifest, error) {
	m, err := c.manifest(ctx, repository, ref, true)
	if err != nil {
		return nil, result.Explain(err)
	}
	return m, nil
}

// StatManifest is Manifest for those who need no content: what is not stored is not downloaded.
func (c *Cache) StatManifest(ctx context.Context, repository string, ref oci.Reference) (*Manifest, error) {
	m, err := c.manifest(ctx, repository, ref, false)
	if err != nil {
		return nil, result.Explain(err)
	}
	return m, nil
}

func (c *Cache) manifest(ctx context.Context, repository string, ref oci.Reference, content bool) (*Manifest, error) {
	outcome, described := result.Hit, upstream.Descriptor{Digest: ref.Digest}
	if ref.Tag != "" {
		tag, err := c.resolve(ctx, repository, ref.Tag)
		if err != nil {
			return nil, err
		}
		if tag.manifest != nil {
			return tag.manifest, nil
		}
		described = tag.descriptor
		if tag.stale {
			outcome = result.Stale
		}
	}
	exact := oci.Reference{Digest: described.Digest}
	if m, ok := c.stored(repository, exact.Digest); ok {
		m.Outcome = outcome
		return m, nil
	}
	if !content {
		if ref.Digest != "" {
			var err error
			if described, err = c.upstream.HeadManifest(ctx, repository, ref); err != nil && !isUnsupported(err) {
				return nil, err
			}
		}
		// What is not described in full, or as something else, is better fetched.
		if described.Digest == exact.Digest && described.Size >= 0 && described.MediaType != "" {
			return &Manifest{Digest: exact.Digest, MediaType: described.MediaType, Size: described.Size, Outcome: result.Miss}, nil
		}
	}
	m, err := c.get(ctx, repository, exact)
	if ref.Tag != "" && isNotFound(err) {
		// The tag has moved, and the upstream has deleted what it named.
		return c.get(ctx, repository, ref)
	}
	return m, err
}

// stored returns the manifest if the repository has it in the store. The caller may change it, but not its content.
func (c *Cache) stored(repository string, d digest.Digest) (*Manifest, bool) {
	if known := c.memory.get(repository, d); known != nil {
		if c.store.UseManifest(repository, d) {
			m := *known
			return &m, true
		}
		c.memory.remove(repository, d)
	}
	content, err := c.store.Manifest(repository, d)
	if err != nil {
		if !errors.Is(err, store.ErrNotFound) {
			c.log.Warn("Cannot read manifest", "repository", repository, "digest", d, "error", err)
		}
		return nil, false
	}
	mediaType, err := oci.ManifestMediaType(content)
	if err != nil {
		// Another server may have stored it; here it has lost the type that the upstream gave it.
		return nil, false
	}
	m := Manifest{Digest: d, MediaType: mediaType, Size: int64(len(content)), Content: content, Outcome: result.Hit}
	remembered := m
	c.memory.put(repository, &remembered)
	return &m, true
}

// get fetches a manifest once for all that want it, and stores it.
func (c *Cache) get(ctx context.Context, repository string, ref oci.Reference) (*Manifest, error) {
	return shared(ctx, c, &c.manifests, ref.In(repository), func(ctx context.Context) (*Manifest, error) {
		// It may have been stored after the caller looked.
		if ref.Digest != "" {
			if m, ok := c.stored(repository, ref.Digest); ok {
				return m, nil
			}
		}
		got, err := c.upstream.Manifest(ctx, repository, ref)
		if err != nil {
			return nil, err
		}
		return c.keep(repository, ref.Tag, got), nil
	})
}

// keep stores a manifest, and the tags that were found to name it. What cannot be stored is passed through.
func (c *Cache) keep(repository, tag string, got *upstream.Manifest) *Manifest {
	m := &Manifest{
		Digest:    got.Digest,
		MediaType: got.MediaType,
		Size:      int64(len(got.Content)),
		Content:   got.Content,
		Outcome:   result.PassThrough,
	}
	mediaType, err := oci.ManifestMediaType(got.Content)
	if err != nil {
		c.log.Warn("Not storing a manifest", "repository", repository, "digest", got.Digest, "error", err)
		return m
	}
	m.MediaType = mediaType
	if err := c.store.PutManifest(repository, got.Digest, got.Content); err != nil {
		c.warnUnstored("manifest", repository+"@"+got.Digest.String(), err)
		return m
	}
	remembered := *m
	remembered.Outcome = result.Hit
	c.memory.put(repository, &remembered)
	m.Outcome = result.Miss
	names := c.tags.naming(repository, got.Digest)
	if tag != "" {
		names = append(names, tag)
	}
	for _, name := range names {
		c.warnUnstored("tag", repository+":"+name, c.store.SetTag(repository, name, got.Digest))
	}
	return m
}

// resolve returns what the tag names, asking the upstream if its last answer is too old.
func (c *Cache) resolve(ctx context.Context, repository, tag string) (resolution, error) {
	if known, ok := c.tags.fresh(repository, tag); ok {
		return known, nil
	}
	ref := oci.Reference{Tag: tag}
	return shared(ctx, c, &c.resolutions, ref.In(repository), func(ctx context.Context) (resolution, error) {
		// The answer may have come after the caller looked.
		if known, ok := c.tags.fresh(repository, tag); ok {
			return known, nil
		}
		return c.revalidate(ctx, repository, ref)
	})
}

func (c *Cache) revalidate(ctx context.Context, repository string, ref oci.Reference) (resolution, error) {
	described, err := c.upstream.HeadManifest(ctx, repository, ref)
	if isUnsupported(err) || err == nil && described.Digest == "" {
		var found resolution
		if found, err = c.resolveByGet(ctx, repository, ref); err == nil {
			return found, nil
		}
	}
	switch {
	case isNotFound(err):
		c.tags.remove(repository, ref.Tag)
		if err := c.store.RemoveTag(repository, ref.Tag); err != nil {
			c.log.Warn("Cannot remove tag", "repository", repository, "tag", ref.Tag, "error", err)
		}
		return resolution{}, err
	case isTemporary(err):
		last, ok := c.lastKnown(repository, ref.Tag)
		if !ok {
			return resolution{}, err
		}
		c.log.Warn("Serving a tag without the upstream", "repository", repository, "tag", ref.Tag, "digest", last.descriptor.Digest, "error", err)
		now := time.Now()
		c.tags.putUntil(repository, ref.Tag, last, now, now.Add(retryAfter(err)))
		return last, nil
	case err != nil:
		return resolution{}, err
	}
	found := resolution{descriptor: described}
	// First the table, then the store: keep does it the other way around, so that one of both sees the other.
	c.tags.put(repository, ref.Tag, found, time.Now())
	if _, ok := c.stored(repository, described.Digest); ok {
		c.warnUnstored("tag", ref.In(repository), c.store.SetTag(repository, ref.Tag, described.Digest))
	}
	return found, nil
}

// resolveByGet is for upstreams that do not tell the digest in answer to HEAD.
func (c *Cache) resolveByGet(ctx context.Context, repository string, ref oci.Reference) (resolution, error) {
	got, err := c.upstream.Manifest(ctx, repository, ref)
	if err != nil {
		return resolution{}, err
	}
	m := c.keep(repository, ref.Tag, got)
	found := resolution{descriptor: upstream.Descriptor{Digest: m.Digest, MediaType: m.MediaType, Size: m.Size}}
	c.tags.put(repository, ref.Tag, found, time.Now())
	found.manifest = m
	return found, nil
}

// lastKnown returns what the tag named when the upstream could last be asked, if that manifest is stored.
func (c *Cache) lastKnown(repository, tag string) (resolution, bool) {
	if last, ok := c.tags.last(repository, tag); ok {
		if _, ok := c.stored(repository, last.descriptor.Digest); ok {
			last.stale = true
			return last, true
		}
	}
	d, err := c.store.Tag(repository, tag)
	if err != nil {
		if !errors.Is(err, store.ErrNotFound) {
			c.log.Warn("Cannot read tag", "repository", repository, "tag", tag, "error", err)
		}
		return resolution{}, false
	}
	m, ok := c.stored(repository, d)
	if !ok {
		return resolution{}, false
	}
	return resolution{descriptor: upstream.Descriptor{Digest: d, MediaType: m.MediaType, Size: m.Size}, stale: true}, true
}
