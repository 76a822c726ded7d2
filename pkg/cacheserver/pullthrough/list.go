// SPDX-License-Identifier: Apache-2.0

package pullthrough

import (
	"context"
	"maps"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/oci"
)

const (
	// maxListBytes bounds what each of the tables of lists remembers, in bytes: thousands of answers about referrers,
	// which have some KiB.
	maxListBytes = 16 << 20
	// listOverhead is what an entry costs beside its content, in bytes. It bounds the number of empty lists, too.
	listOverhead = 1 << 10
)

// TagPage is an answer with tags.
type TagPage struct {
	Tags oci.TagList
	// Next is the query of the next page, nil on the last one. It is to be read only.
	Next    url.Values
	Outcome result.Outcome
}

// Referrers is an answer with the manifests that refer to another one.
type Referrers struct {
	// Index is an OCI index, to be read only.
	Index []byte
	// FiltersApplied is empty, or "artifactType" where the index has only the type of the query.
	FiltersApplied string
	// Next is the query of the next page, nil on the last one.
	Next    url.Values
	Outcome result.Outcome
}

// Tags returns a page of the repository's tags. The query may have n, the number of tags that are wanted, and last, the
// tag that the page comes after; other parameters are the upstream's, from the field Next of a page. What the upstream
// does not make of n and last is made here. Errors are *Error.
func (c *Cache) Tags(ctx context.Context, repository string, query url.Values) (*TagPage, error) {
	page, outcome, err := list(ctx, c, c.tagPages, "tags of "+repository, query, func(ctx context.Context) (TagPage, int, error) {
		got, err := c.upstream.Tags(ctx, repository, query)
		if err != nil {
			return TagPage{}, 0, err
		}
		p := paginate(got.Tags, got.Next, query)
		return p, p.Tags.Size(), nil
	})
	if err != nil {
		return nil, result.Explain(err)
	}
	page.Outcome = outcome
	return &page, nil
}

// Referrers returns a page of the manifests in the repository that refer to the one with the digest. The query may have
// artifactType; other parameters are the upstream's, from the field Next of a page. Errors are *Error; NotFound says
// that the upstream does not have the API, so that clients look for the referrers tag.
func (c *Cache) Referrers(ctx context.Context, repository string, d digest.Digest, query url.Values) (*Referrers, error) {
	page, outcome, err := list(ctx, c, c.referrers, "referrers of "+repository+"@"+d.String(), query, func(ctx context.Context) (Referrers, int, error) {
		got, err := c.upstream.Referrers(ctx, repository, d, query)
		if err != nil {
			return Referrers{}, 0, err
		}
		return Referrers{Index: got.Index, FiltersApplied: got.FiltersApplied, Next: got.Next}, len(got.Index), nil
	})
	switch {
	case lacksReferrers(err):
		return nil, &result.Error{Reason: result.NotFound, Err: err}
	case err != nil:
		return nil, result.Explain(err)
	}
	page.Outcome = outcome
	return &page, nil
}

// list returns the list with the name that the table has for the query if it is fresh, and what ask returns otherwise,
// asking once for all clients. If the upstream cannot say, it returns what it said the last time.
func list[T any](ctx context.Context, c *Cache, table *listTable[T], name string, query url.Values, ask func(context.Context) (list T, size int, err error)) (T, result.Outcome, error) {
	key := name + "?" + query.Encode()
	if known, outcome, ok := table.fresh(key); ok {
		return known, outcome, nil
	}
	type answer struct {
		list    T
		outcome result.Outcome
	}
	got, err := shared(ctx, c, &c.lists, key, func(ctx context.Context) (answer, error) {
		// The answer may have come after the caller looked.
		if known, outcome, ok := table.fresh(key); ok {
			return answer{known, outcome}, nil
		}
		asked, size, err := ask(ctx)
		switch {
		case err == nil:
			table.put(key, asked, size, time.Now())
			return answer{asked, result.Miss}, nil
		case !lacksReferrers(err) && isTemporary(err):
			if last, ok := table.keep(key, time.Now()); ok {
				c.log.Warn("Serving a list without the upstream", "list", name, "error", err)
				return answer{last, result.Stale}, nil
			}
		case ctx.Err() == nil:
			table.remove(key)
		}
		return answer{}, err
	})
	return got.list, got.outcome, err
}

// paginate makes the page that the query asks for of what the upstream sent, which may begin with the last tag of the
// page before, or have all tags. It changes none of its arguments. No order is expected, because registries have different ones.
func paginate(tags oci.TagList, next, query url.Values) TagPage {
	limit, err := strconv.Atoi(query.Get("n"))
	if err != nil || limit < 0 {
		limit = -1
	}
	page, last := tags.Page(query.Get("last"), limit)
	switch {
	case limit == 0:
		return TagPage{}
	case last != "":
		next = maps.Clone(query)
		next.Set("last", last)
	}
	if next.Encode() == query.Encode() {
		// It would be asked for this page for ever.
		next = nil
	}
	return TagPage{Tags: page, Next: next}
}

// listTable remembers the upstream's answers with lists. It is safe for concurrent use.
type listTable[T any] struct {
	validFor time.Duration

	mu      sync.Mutex // guards what follows
	entries map[string]listEntry[T]
	size    int // of all entries, in bytes
}

type listEntry[T any] struct {
	list    T
	size    int // in bytes
	checked time.Time
	stale   bool // the upstream could not be asked when it was checked
}

func newListTable[T any](validFor time.Duration) *listTable[T] {
	return &listTable[T]{validFor: validFor, entries: map[string]listEntry[T]{}}
}

// fresh returns a list that needs no question.
func (t *listTable[T]) fresh(key string) (T, result.Outcome, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.entries[key]
	outcome := result.Hit
	if e.stale {
		outcome = result.Stale
	}
	return e.list, outcome, ok && time.Since(e.checked) < t.validFor
}

func (t *listTable[T]) put(key string, list T, size int, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop(key)
	size += len(key) + listOverhead
	for t.size+size > maxListBytes && len(t.entries) > 0 {
		t.dropOldest()
	}
	t.entries[key] = listEntry[T]{list: list, size: size, checked: now}
	t.size += size
}

// keep returns a list of any age and uses it on, because the upstream cannot say what it is now.
func (t *listTable[T]) keep(key string, now time.Time) (T, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.entries[key]
	if ok {
		e.checked, e.stale = now, true
		t.entries[key] = e
	}
	return e.list, ok
}

func (t *listTable[T]) remove(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop(key)
}

// drop and dropOldest are called with the lock.
func (t *listTable[T]) drop(key string) {
	t.size -= t.entries[key].size
	delete(t.entries, key)
}

func (t *listTable[T]) dropOldest() {
	oldest := ""
	for key, e := range t.entries {
		if oldest == "" || e.checked.Before(t.entries[oldest].checked) {
			oldest = key
		}
	}
	t.drop(oldest)
}
