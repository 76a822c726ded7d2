// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/lru"
	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/oci"
)

const (
	// maxContentsSize limits the memory for manifests, in bytes: thousands of manifests of some KiB.
	maxContentsSize = 16 << 20
	// largeManifest is the size, in bytes, from which a manifest is parsed together with at most maxLargeParsers-1 others.
	// Manifests of real images have up to some ten KiB.
	largeManifest   = 256 << 10
	maxLargeParsers = 2
	// completeTime is the time between two examinations of a manifest with complete content, which can be evicted meanwhile.
	// maxComplete limits the number of these manifests. An entry has about 300 bytes.
	completeTime = 10 * time.Second
	maxComplete  = 1 << 12
	// manifestOverhead is the memory of a manifest without its content, in bytes.
	manifestOverhead = 512
)

type manifestKey struct {
	repository string
	digest     digest.Digest
}

// contents returns manifests by digest from memory and from the store, and stores manifests of the upstream. Reading,
// hashing and parsing a manifest costs as much as the rest of an answer, so verified manifests stay in memory. The store
// decides whether they are still stored.
type contents struct {
	files    Store
	blobs    *blobs
	unstored func(kind, name string, err error)
	log      *slog.Logger
	parsers  chan struct{} // has an element for each large manifest that is being parsed

	mu       sync.Mutex // guards the following fields
	verified *lru.Map[manifestKey, *Manifest]
	complete *lru.Map[manifestKey, time.Time] // when lacksContent has found it to be complete
}

func newContents(s Store, b *blobs, o Options) *contents {
	return &contents{
		files:    s,
		blobs:    b,
		unstored: o.Unstored,
		log:      o.Logger,
		parsers:  make(chan struct{}, maxLargeParsers),
		verified: lru.New(maxContentsSize, func(_ manifestKey, m *Manifest) int64 { return m.Size + manifestOverhead }),
		complete: lru.New(maxComplete, func(manifestKey, time.Time) int64 { return 1 }),
	}
}

// has reports whether the repository has a manifest in the store. It counts as a use of the manifest.
func (c *contents) has(repository string, d digest.Digest) bool {
	_, ok := c.stored(repository, d)
	return ok
}

// stored returns a manifest that the repository has in the store, with the outcome Hit. The caller may modify the fields,
// but not the content.
func (c *contents) stored(repository string, d digest.Digest) (*Manifest, bool) {
	key := manifestKey{repository, d}
	if m := c.recall(key); m != nil {
		if c.files.UseManifest(repository, d) {
			hit := *m
			return &hit, true
		}
		c.drop(key)
	}
	content, err := c.files.Manifest(repository, d)
	if err != nil {
		if !errors.Is(err, store.ErrNotFound) {
			c.log.Warn("Cannot read manifest", "repository", repository, "digest", d, "error", err)
		}
		return nil, false
	}
	m := &Manifest{Digest: d, Size: int64(len(content)), Content: content, Outcome: result.Hit}
	if m.MediaType, err = c.parse(repository, m); err != nil {
		// The stock registry may have stored it. The media type of the upstream's response is unknown.
		return nil, false
	}
	c.remember(key, m)
	return m, true
}

// lacksContent reports that a stored manifest names content that is not stored, so that a pull needs the upstream. A client needs
// the content of one manifest of an index, so it is sufficient if that of all manifests in memory is there: clients have read
// these. Large manifests are not examined.
func (c *contents) lacksContent(repository string, d digest.Digest) bool {
	key := manifestKey{repository, d}
	if c.wasComplete(key, time.Now()) {
		return false
	}
	m, ok := c.stored(repository, d)
	if !ok || c.lacks(repository, m, maxNesting) {
		return ok
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.complete.Put(key, time.Now())
	return false
}

// lacks is lacksContent for a manifest. It does not count as a use of the manifests that an index names.
func (c *contents) lacks(repository string, m *Manifest, nesting int) bool {
	if nesting == 0 || m.Size >= largeManifest {
		return false
	}
	manifests, usable := false, false
	for r, err := range oci.References(m.Content) {
		if err != nil {
			return false // clients decide about it
		}
		has := c.files.Has(r.Digest)
		if r.Role != oci.RoleManifest {
			if !has {
				return true
			}
			continue
		}
		manifests, usable = true, usable || has
		if child := c.recall(manifestKey{repository, r.Digest}); child != nil && has && c.lacks(repository, child, nesting-1) {
			return true
		}
	}
	return manifests && !usable
}

// wasComplete reports that the content of a manifest was complete within the last completeTime.
func (c *contents) wasComplete(key manifestKey, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, known := c.complete.Get(key)
	return known && now.Sub(at) < completeTime
}

// keep stores a manifest of the upstream. The outcome of the result is PassThrough if it cannot be stored.
func (c *contents) keep(repository string, got *upstream.Manifest) *Manifest {
	m := &Manifest{
		Digest:    got.Digest,
		MediaType: got.MediaType,
		Size:      int64(len(got.Content)),
		Content:   got.Content,
		Outcome:   result.PassThrough,
	}
	mediaType, err := c.parse(repository, m)
	if err != nil {
		c.log.Warn("Not storing a manifest", "repository", repository, "digest", got.Digest, "error", err)
		return m
	}
	m.MediaType = mediaType
	if err := c.files.PutManifest(repository, got.Digest, got.Content); err != nil {
		c.unstored("manifest", repository+"@"+got.Digest.String(), err)
		return m
	}
	m.Outcome = result.Miss
	c.remember(manifestKey{repository, got.Digest}, m)
	return m
}

// parse returns the media type of a manifest and records the blobs that it names. A manifest with invalid references is
// served all the same, because clients may support more.
func (c *contents) parse(repository string, m *Manifest) (mediaType string, err error) {
	if m.Size >= largeManifest {
		c.parsers <- struct{}{}
		defer func() { <-c.parsers }()
	}
	if mediaType, err = oci.ManifestMediaType(m.Content); err != nil {
		return "", err
	}
	c.blobs.record(manifestKey{repository, m.Digest}, m.Content)
	return mediaType, nil
}

func (c *contents) recall(key manifestKey) *Manifest {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, _ := c.verified.Get(key)
	return m
}

// remember stores a copy of the manifest in memory.
func (c *contents) remember(key manifestKey, m *Manifest) {
	hit := *m
	hit.Outcome = result.Hit
	c.mu.Lock()
	defer c.mu.Unlock()
	c.verified.Put(key, &hit)
}

func (c *contents) drop(key manifestKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.verified.Remove(key)
}

func descriptorOf(m *Manifest) upstream.Descriptor {
	return upstream.Descriptor{Digest: m.Digest, MediaType: m.MediaType, Size: m.Size}
}
