// SPDX-License-Identifier: Apache-2.0

// Package background runs goroutines that belong to the cache instead of to one request. A download, for example,
// continues after its first client has disconnected.
package background

import (
	"context"
	"errors"
	"sync"
)

// ErrClosed is the cause of the context of a closed Group.
var ErrClosed = errors.New("the cache is shutting down")

// Group is a set of goroutines with a common end. It is safe for concurrent use.
type Group struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	work   sync.WaitGroup

	mu     sync.Mutex // guards closed, and calls of work.Go after Close
	closed bool
}

// New returns a group without goroutines. The caller calls Close.
func New() *Group {
	g := &Group{}
	g.ctx, g.cancel = context.WithCancelCause(context.Background())
	return g
}

// Go runs f in a new goroutine and returns true. It returns false without running f after Close. The context of f ends
// with the cause ErrClosed when Close is called; f must then return soon. f may call Go, but must not call Close.
func (g *Group) Go(f func(ctx context.Context)) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.work.Go(func() { f(g.ctx) })
	return true
}

// Close cancels the context of all goroutines with the cause ErrClosed and waits until they have returned. Further
// calls only wait.
func (g *Group) Close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.cancel(ErrClosed)
	g.work.Wait()
}

// Wait returns when the group has no goroutine. The group remains usable. No other goroutine may start the first
// goroutine of an empty group concurrently with Wait.
func (g *Group) Wait() { g.work.Wait() }
