// SPDX-License-Identifier: Apache-2.0

package pullthrough

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

// maxTags bounds the tags that are remembered. A Shoot of thousands of images stays below it; beyond it the upstream
// is asked more often.
const maxTags = 8192

// resolution is what a tag names.
type resolution struct {
	descriptor upstream.Descriptor
	// stale says that the upstream could not be asked.
	stale bool
	// manifest is set for those who waited for an answer that came with the content.
	manifest *Manifest
}

type tagName struct{ repository, tag string }

type tagEntry struct {
	resolution resolution
	until      time.Time // when the upstream is asked again
}

// tagTable remembers the upstream's answers about tags. It is safe for concurrent use.
type tagTable struct {
	validFor time.Duration

	mu      sync.Mutex // guards entries
	entries map[tagName]tagEntry
}

func newTagTable(validFor time.Duration) *tagTable {
	return &tagTable{validFor: validFor, entries: map[tagName]tagEntry{}}
}

// fresh returns an answer that needs no revalidation.
func (t *tagTable) fresh(repository, tag string) (resolution, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.entries[tagName{repository, tag}]
	return e.resolution, ok && time.Now().Before(e.until)
}

// last returns an answer of any age.
func (t *tagTable) last(repository, tag string) (resolution, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.entries[tagName{repository, tag}]
	return e.resolution, ok
}

// put remembers an answer that came now.
func (t *tagTable) put(repository, tag string, r resolution, now time.Time) {
	t.putUntil(repository, tag, r, now, now.Add(t.validFor))
}

// putUntil remembers an answer that is used until then, or for as long as others are if that is longer.
func (t *tagTable) putUntil(repository, tag string, r resolution, now, until time.Time) {
	if least := now.Add(t.validFor); until.Before(least) {
		until = least
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.entries) >= maxTags {
		t.shrink(now)
	}
	t.entries[tagName{repository, tag}] = tagEntry{r, until}
}

func (t *tagTable) remove(repository, tag string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.entries, tagName{repository, tag})
}

// naming returns the tags that name the digest by the upstream's last answer.
func (t *tagTable) naming(repository string, d digest.Digest) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var tags []string
	for name, e := range t.entries {
		if name.repository == repository && e.resolution.descriptor.Digest == d {
			tags = append(tags, name.tag)
		}
	}
	return tags
}

// shrink drops what is old, and everything if that does not help. The caller holds the lock.
func (t *tagTable) shrink(now time.Time) {
	for name, e := range t.entries {
		if !now.Before(e.until) {
			delete(t.entries, name)
		}
	}
	if len(t.entries) >= maxTags {
		clear(t.entries)
	}
}
