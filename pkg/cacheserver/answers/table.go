// SPDX-License-Identifier: Apache-2.0

// Package answers stores answers of the upstream that can change: the digests of tags, lists of tags and referrers.
// It decides when an answer is fresh, when it is used although the upstream fails, and when the upstream is requested.
package answers

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/background"
	"github.com/registry-cache/extension/pkg/cacheserver/lru"
	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

// entrySize is an upper bound of the memory of an entry without its key and value, in bytes: about 200 for the entry and
// its error, and about 150 for the list and the map of the LRU.
const entrySize = 512

// Options are the properties of a Table. All fields without a default are required.
type Options[K comparable, V any] struct {
	// Kind is the kind of the answers in logs, for example "tag".
	Kind      string
	Lifetimes Lifetimes
	// MaxSize limits the memory of all answers, in bytes. The least recently used answers are evicted.
	MaxSize int64
	// Size returns the memory of a key and its value, in bytes.
	Size func(key K, value V) int64
	// Classify returns the class of an error of a request, and the time until the upstream accepts the next one. Default:
	// function Classify.
	Classify func(err error) (Class, time.Duration)
	// Restore returns an answer that survived a restart, and the time at which the upstream confirmed it. It is called if
	// the upstream fails and the table has no positive answer. Default: there is none.
	Restore func(key K) (value V, confirmed time.Time, ok bool)
	// Logger logs the use of stale answers. Default: discarded.
	Logger *slog.Logger
}

// Answer is an answer of the upstream.
type Answer[V any] struct {
	Value V
	// Outcome is Miss if the upstream was requested, Hit if a fresh answer was stored, and Stale if the upstream fails.
	Outcome result.Outcome
}

// Table stores answers by key. It is safe for concurrent use.
type Table[K comparable, V any] struct {
	options Options[K, V]
	calls   *background.Coalescer[K, Answer[V]]

	mu      sync.Mutex // guards entries
	entries *lru.Map[K, entry[V]]
}

// New returns an empty table. Requests to the upstream belong to group.
func New[K comparable, V any](group *background.Group, o Options[K, V]) *Table[K, V] {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Classify == nil {
		o.Classify = Classify
	}
	if o.Restore == nil {
		o.Restore = func(K) (none V, confirmed time.Time, ok bool) { return none, time.Time{}, false }
	}
	return &Table[K, V]{
		options: o,
		calls:   background.NewCoalescer[K, Answer[V]](group),
		entries: lru.New(o.MaxSize, func(key K, e entry[V]) int64 { return entrySize + o.Size(key, e.value) }),
	}
}

// Get returns the stored answer if it is fresh, otherwise the result of request. Concurrent calls with the same key share
// one request, which continues when its first caller leaves. If the request fails temporarily, Get returns the stored
// answer up to Lifetimes.MaxStale after the upstream confirmed it, and does not request the upstream again for
// Lifetimes.Fresh or, if it is longer, for the time that Options.Classify has returned.
//
// The error is that of a negative answer, which may be a stored one, that of request, or the cause of ctx.
func (t *Table[K, V]) Get(ctx context.Context, key K, request func(context.Context) (V, error)) (Answer[V], error) {
	if stored, ok, err := t.stored(key, false); ok {
		return stored, err
	}
	return t.calls.Do(ctx, key, func(ctx context.Context) (Answer[V], error) {
		// Another call may have stored an answer in the meantime.
		if stored, ok, err := t.stored(key, false); ok {
			return stored, err
		}
		return t.revalidate(ctx, key, request)
	})
}

// Confirm is Get, except that a fresh positive answer is confirmed by the upstream. Concurrent calls share one request, and during
// the time without requests after a failure the stored answer is returned.
func (t *Table[K, V]) Confirm(ctx context.Context, key K, request func(context.Context) (V, error)) (Answer[V], error) {
	if stored, ok, err := t.stored(key, false); ok && (err != nil || stored.Outcome != result.Hit) {
		return stored, err
	}
	return t.calls.Do(ctx, key, func(ctx context.Context) (Answer[V], error) {
		return t.revalidate(ctx, key, request)
	})
}

func (t *Table[K, V]) revalidate(ctx context.Context, key K, request func(context.Context) (V, error)) (Answer[V], error) {
	requesting := ctx
	if _, ok, err := t.stored(key, true); ok && err == nil {
		requesting = upstream.WithAlternative(ctx)
	}
	value, err := request(requesting)
	if err == nil {
		t.Put(key, value)
		return Answer[V]{Value: value, Outcome: result.Miss}, nil
	}
	if ctx.Err() != nil {
		return Answer[V]{}, err
	}
	class, wait := t.options.Classify(err)
	switch class {
	case Negative:
		t.update(key, func(e *entry[V]) {
			e.repeated = e.negative != nil
			e.negative, e.rejected, e.retryAt = err, time.Now(), time.Time{}
		})
		return Answer[V]{}, err
	case Temporary:
		return t.serveStale(key, err, wait)
	default:
		t.Remove(key)
		return Answer[V]{}, err
	}
}

// serveStale returns the stored answer after a failure of the upstream.
func (t *Table[K, V]) serveStale(key K, failure error, wait time.Duration) (Answer[V], error) {
	if !t.hasValue(key) {
		value, confirmed, ok := t.options.Restore(key)
		if ok && t.options.Lifetimes.UsableStale(confirmed, time.Now()) {
			t.update(key, func(e *entry[V]) { e.value, e.confirmed = value, confirmed })
		}
	}
	stored, ok, err := t.stored(key, true)
	if !ok {
		return Answer[V]{}, failure
	}
	retryAt := time.Now().Add(max(wait, t.options.Lifetimes.Fresh))
	t.update(key, func(e *entry[V]) { e.retryAt = retryAt })
	t.options.Logger.Warn("Serving a stale answer", "kind", t.options.Kind, "key", key, "retryAt", retryAt, "error", failure)
	return stored, err
}

// stored returns the usable answer, see decide. ok is false without one. A negative answer is an error with ok.
func (t *Table[K, V]) stored(key K, failed bool) (answer Answer[V], ok bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, exists := t.entries.Get(key)
	if !exists {
		return Answer[V]{}, false, nil
	}
	switch decide(e, t.options.Lifetimes, time.Now(), failed) {
	case freshValue:
		return Answer[V]{Value: e.value, Outcome: result.Hit}, true, nil
	case staleValue:
		return Answer[V]{Value: e.value, Outcome: result.Stale}, true, nil
	case freshNegative, staleNegative:
		return Answer[V]{}, true, e.negative
	default:
		return Answer[V]{}, false, nil
	}
}

func (t *Table[K, V]) hasValue(key K) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, exists := t.entries.Peek(key)
	return exists && !e.confirmed.IsZero()
}

// Put stores a positive answer that the upstream has just returned.
func (t *Table[K, V]) Put(key K, value V) {
	t.update(key, func(e *entry[V]) { *e = entry[V]{value: value, confirmed: time.Now()} })
}

// Remove deletes the answer.
func (t *Table[K, V]) Remove(key K) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entries.Remove(key)
}

// Find returns the keys with a matching value, and the times at which the upstream confirmed them. Keys with a newer negative
// answer are excluded. The duration is proportional to the number of all answers.
func (t *Table[K, V]) Find(matches func(key K, value V) bool) map[K]time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	found := map[K]time.Time{}
	for _, key := range t.entries.Keys() {
		if e, _ := t.entries.Peek(key); e.negative == nil && !e.confirmed.IsZero() && matches(key, e.value) {
			found[key] = e.confirmed
		}
	}
	return found
}

// update changes the entry, which is empty for a new key.
func (t *Table[K, V]) update(key K, change func(*entry[V])) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, _ := t.entries.Peek(key)
	change(&e)
	t.entries.Put(key, e)
}
