// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/answers"
	"github.com/registry-cache/extension/pkg/cacheserver/background"
	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/oci"
)

const (
	// maxTagsSize limits the memory for answers about tags, in bytes: about 5000 tags.
	maxTagsSize = 4 << 20
	// maxFreshMissing limits the time in which a missing tag is not requested again. A new tag must become visible as soon as
	// with the default of RevalidateAfter, also if RevalidateAfter is longer.
	maxFreshMissing = 10 * time.Second
	// touchInterval is the accuracy of the time of a stored tag. A shorter interval would write more often.
	touchInterval = 10 * time.Minute
)

type tagKey struct{ repository, tag string }

// LogValue implements slog.LogValuer.
func (k tagKey) LogValue() slog.Value { return slog.StringValue(k.repository + ":" + k.tag) }

// resolution is the answer to the resolution of a tag.
type resolution struct {
	descriptor upstream.Descriptor
	// outcome is Hit for an answer of an earlier request, Miss for an answer that the upstream has just returned, and Stale.
	outcome result.Outcome
	// manifest is set if the upstream has returned the manifest instead of its digest.
	manifest *Manifest
}

// tags resolves tags. The answers are in memory; the store has them for the time after a restart.
type tags struct {
	upstream  Upstream
	files     Store
	contents  *contents
	lifetimes answers.Lifetimes
	table     *answers.Table[tagKey, upstream.Descriptor]
	unstored  func(kind, name string, err error)
	log       *slog.Logger
}

func newTags(group *background.Group, s Store, u Upstream, c *contents, o Options) *tags {
	t := &tags{upstream: u, files: s, contents: c, unstored: o.Unstored, log: o.Logger}
	t.lifetimes = answers.Lifetimes{
		Fresh:         o.RevalidateAfter,
		FreshNegative: min(o.RevalidateAfter, maxFreshMissing),
		MaxStale:      o.MaxStale,
	}
	t.table = answers.New(group, answers.Options[tagKey, upstream.Descriptor]{
		Kind:      "tag",
		Lifetimes: t.lifetimes,
		MaxSize:   maxTagsSize,
		Size: func(k tagKey, d upstream.Descriptor) int64 {
			return int64(len(k.repository) + len(k.tag) + len(d.MediaType) + len(d.Digest))
		},
		Restore: t.stored,
		Logger:  o.Logger,
	})
	return t
}

// resolve returns the digest of a tag. While the upstream fails, a digest with a stored manifest has priority.
func (t *tags) resolve(ctx context.Context, repository, tag string) (resolution, error) {
	key := tagKey{repository, tag}
	var got *Manifest
	request := func(ctx context.Context) (d upstream.Descriptor, err error) {
		d, got, err = t.request(ctx, key)
		return d, err
	}
	answer, err := t.table.Get(ctx, key, request)
	if err == nil && answer.Outcome == result.Hit && t.contents.lacksContent(repository, answer.Value.Digest) {
		// The pull needs the upstream, which may have moved the tag and deleted the missing content since the answer.
		answer, err = t.table.Confirm(ctx, key, request)
	}
	if err != nil {
		return resolution{}, err
	}
	if answer.Outcome == result.Stale && !t.contents.has(repository, answer.Value.Digest) {
		if d, confirmed, ok := t.stored(key); ok && t.lifetimes.UsableStale(confirmed, time.Now()) {
			answer.Value = d
		}
	}
	found := resolution{descriptor: answer.Value, outcome: answer.Outcome}
	if answer.Outcome == result.Miss {
		found.manifest = got
	}
	return found, nil
}

// request resolves a tag with the upstream. It returns a manifest if the upstream does not return the digest without it.
func (t *tags) request(ctx context.Context, key tagKey) (upstream.Descriptor, *Manifest, error) {
	ref := oci.Reference{Tag: key.tag}
	d, err := t.upstream.HeadManifest(ctx, key.repository, ref)
	if err != nil && !isUnsupported(err) {
		return upstream.Descriptor{}, nil, err
	}
	var m *Manifest
	if err != nil || d.Digest == "" {
		got, err := t.upstream.Manifest(ctx, key.repository, ref)
		if err != nil {
			return upstream.Descriptor{}, nil, err
		}
		m = t.contents.keep(key.repository, got)
		d = descriptorOf(m)
	}
	// The answer must be in the table before the store is read: a fetch that stores the manifest concurrently does it the
	// other way around, so that one of both stores the tag.
	t.table.Put(key, d)
	if t.contents.has(key.repository, d.Digest) {
		t.persist(key, d.Digest, time.Now())
	}
	return d, m, nil
}

// stored returns the digest of a tag in the store and the time of its last confirmation, if the manifest is stored, too.
func (t *tags) stored(key tagKey) (d upstream.Descriptor, confirmed time.Time, ok bool) {
	named, err := t.files.Tag(key.repository, key.tag)
	if err == nil {
		confirmed, err = t.files.TagTime(key.repository, key.tag)
	}
	if err != nil {
		if !errors.Is(err, store.ErrNotFound) {
			t.log.Warn("Cannot read tag", "tag", key, "error", err)
		}
		return upstream.Descriptor{}, time.Time{}, false
	}
	m, ok := t.contents.stored(key.repository, named)
	if !ok {
		return upstream.Descriptor{}, time.Time{}, false
	}
	return descriptorOf(m), confirmed, true
}

// confirm records that the upstream has returned a manifest by tag.
func (t *tags) confirm(repository, tag string, d upstream.Descriptor) {
	t.table.Put(tagKey{repository, tag}, d)
}

// store persists all tags that name a stored manifest.
func (t *tags) store(repository string, d digest.Digest) {
	for key, confirmed := range t.naming(repository, d) {
		t.persist(key, d, confirmed)
	}
}

// forget removes the answers that name a manifest. Tags in the store stay: they are used only with a stored manifest.
func (t *tags) forget(repository string, d digest.Digest) {
	for key := range t.naming(repository, d) {
		t.table.Remove(key)
	}
}

// naming returns the tags that name a manifest by the last answer of the upstream, with the time of this answer.
func (t *tags) naming(repository string, d digest.Digest) map[tagKey]time.Time {
	return t.table.Find(func(key tagKey, named upstream.Descriptor) bool {
		return key.repository == repository && named.Digest == d
	})
}

// persist stores a tag and the time at which the upstream has confirmed it.
func (t *tags) persist(key tagKey, d digest.Digest, confirmed time.Time) {
	name := key.repository + ":" + key.tag
	if err := t.files.SetTag(key.repository, key.tag, d); err != nil {
		t.unstored("tag", name, err)
		return
	}
	recorded, err := t.files.TagTime(key.repository, key.tag)
	if err == nil && needsTouch(recorded, confirmed, t.lifetimes.MaxStale) {
		err = t.files.TouchTag(key.repository, key.tag, confirmed)
	}
	if err != nil {
		t.unstored("tag", name, err)
	}
}

// needsTouch reports whether the recorded time of a tag differs too much from the confirmed time. A tenth of maxStale limits
// the error for short values of maxStale.
func needsTouch(recorded, confirmed time.Time, maxStale time.Duration) bool {
	return confirmed.Sub(recorded).Abs() >= min(touchInterval, maxStale/10)
}

// isUnsupported reports whether the upstream does not support HEAD for manifests.
func isUnsupported(err error) bool {
	failed, ok := errors.AsType[*upstream.Error](err)
	return ok && failed.StatusCode == http.StatusMethodNotAllowed
}
