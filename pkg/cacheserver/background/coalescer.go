// SPDX-License-Identifier: Apache-2.0

package background

import (
	"context"
	"sync"
)

// Coalescer combines concurrent calls with the same key into one. The call belongs to a Group instead of to its first
// caller, so it continues for the other callers when one of them leaves. It is safe for concurrent use.
type Coalescer[K comparable, V any] struct {
	group *Group

	mu    sync.Mutex // guards calls
	calls map[K]*call[V]
}

// call is a call in progress. value and err are valid after done is closed.
type call[V any] struct {
	done  chan struct{}
	value V
	err   error
}

// NewCoalescer returns a Coalescer that runs its calls in group.
func NewCoalescer[K comparable, V any](group *Group) *Coalescer[K, V] {
	return &Coalescer[K, V]{group: group, calls: map[K]*call[V]{}}
}

// Do returns the result of f. If a call with the same key is in progress, Do returns the result of that call and does not
// run f. It returns the cause of ctx when ctx ends, and ErrClosed after Close of the group; the context of f ends only with
// the group.
func (c *Coalescer[K, V]) Do(ctx context.Context, key K, f func(context.Context) (V, error)) (V, error) {
	var none V
	running := c.startOrJoin(key, f)
	if running == nil {
		return none, ErrClosed
	}
	select {
	case <-running.done:
		return running.value, running.err
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
}

// startOrJoin returns nil if the group is closed.
func (c *Coalescer[K, V]) startOrJoin(key K, f func(context.Context) (V, error)) *call[V] {
	c.mu.Lock()
	defer c.mu.Unlock()
	if running := c.calls[key]; running != nil {
		return running
	}
	started := &call[V]{done: make(chan struct{})}
	if !c.group.Go(func(ctx context.Context) {
		defer c.finish(key, started)
		started.value, started.err = f(ctx)
	}) {
		return nil
	}
	c.calls[key] = started
	return started
}

func (c *Coalescer[K, V]) finish(key K, finished *call[V]) {
	c.mu.Lock()
	delete(c.calls, key)
	c.mu.Unlock()
	close(finished.done)
}
