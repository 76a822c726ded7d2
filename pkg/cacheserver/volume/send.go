// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"sync"
	"syscall"
	"time"
)

// guardPeriod is the time between two calls of a guard.
const guardPeriod = time.Second

// guard supervises the sendfile calls of one file.
type guard struct {
	mu    sync.Mutex // guards check, and is held while it runs
	check func(hung bool)
}

// Guard supervises the sendfile calls of the file: while one is in progress for longer than the timeout of the volume,
// check is called every second, in another goroutine. Its parameter reports whether the volume is hung. Check should shut
// the connection down if the volume is hung, or if the socket has no unsent bytes, which means that the response waits for
// the volume and not for the client. Check must not block. The returned function ends the supervision and waits for a
// running check. Only one guard of a file is active.
func (f *File) Guard(check func(hung bool)) (end func()) {
	g := &guard{check: check}
	f.guard.Store(g)
	return func() {
		f.guard.CompareAndSwap(g, nil)
		g.mu.Lock()
		defer g.mu.Unlock()
		g.check = nil
	}
}

// run calls check, unless the supervision has ended.
func (g *guard) run(hung bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.check != nil {
		g.check(hung)
	}
}

// SyscallConn implements syscall.Conn, so that package net uses sendfile(2), see the package documentation.
func (f *File) SyscallConn() (syscall.RawConn, error) {
	conn, err := f.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	return rawConn{conn, f}, nil
}

// rawConn is the descriptor of a file. Package net executes sendfile in Read.
type rawConn struct {
	syscall.RawConn
	file *File
}

// Read implements syscall.RawConn.
func (c rawConn) Read(call func(fd uintptr) bool) error {
	f := c.file
	if err := f.Err(); err != nil {
		return err
	}
	if f.files.health.isHung() {
		return hung(OpRead, f.Name())
	}
	defer c.supervise()()
	if err := f.files.calls.check(OpRead, f.Name()); err != nil {
		f.files.health.observe(OpRead, err)
		return err
	}
	return c.RawConn.Read(call)
}

// supervise runs the guard of the file periodically, beginning after the timeout, until the returned function is called.
func (c rawConn) supervise() (end func()) {
	f := c.file
	g := f.guard.Load()
	if g == nil {
		return func() {}
	}
	ended := make(chan struct{})
	timer := time.AfterFunc(f.files.timeout, func() {
		tick := time.NewTicker(guardPeriod)
		defer tick.Stop()
		for {
			g.run(f.files.health.isHung())
			select {
			case <-tick.C:
			case <-ended:
				return
			}
		}
	})
	return func() {
		timer.Stop()
		close(ended)
	}
}
