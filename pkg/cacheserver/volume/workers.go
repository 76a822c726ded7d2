// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"sync"
	"sync/atomic"
	"time"
)

// maxIdleWorkers bounds the workers that wait for the next task. Others end after their task.
const maxIdleWorkers = 16

// Phases of a task.
const (
	running int32 = iota
	finished
	abandoned
)

// task is one call on the volume. The worker owns all fields until it has sent to done; afterwards the caller owns them.
// An abandoned task belongs to the worker.
type task struct {
	work func(*task)
	// late reverts the effect of an abandoned task. Nil if nothing must be reverted.
	late func(*task)

	phase atomic.Int32
	done  chan struct{} // capacity 1
	timer *time.Timer

	// err and n are results. The other fields are the parameters of work, see transfer.
	err    error
	n      int
	file   *File
	buffer []byte
	offset int64
}

// isAbandoned reports whether the caller has stopped waiting.
func (t *task) isAbandoned() bool { return t.phase.Load() == abandoned }

// workers executes tasks in a bounded number of goroutines. Starting a goroutine for each call would be simpler, but a
// persistent worker costs less, see BenchmarkWrite.
type workers struct {
	max   int64
	tasks chan *task
	// ended is closed by close.
	ended chan struct{}

	mu     sync.Mutex // guards closed, and orders group.Go before group.Wait
	closed bool
	group  sync.WaitGroup // contains the workers

	// count is the number of workers, idle the number of those that wait for a task, blocked the number of workers with an
	// abandoned task.
	count, idle, blocked atomic.Int64
	// returned is called after each abandoned task that has ended.
	returned func()
	pool     sync.Pool // of *task; one pool per FS, because timers must not leave a testing/synctest bubble
}

func newWorkers(limit int, returned func()) *workers {
	w := &workers{max: int64(limit), tasks: make(chan *task), ended: make(chan struct{}), returned: returned}
	w.pool.New = func() any {
		t := &task{done: make(chan struct{}, 1), timer: time.NewTimer(time.Hour)}
		t.timer.Stop()
		return t
	}
	return w
}

func (w *workers) get() *task { return w.pool.Get().(*task) }

// put returns a task to the pool that was executed and not abandoned.
func (w *workers) put(t *task) {
	t.work, t.late, t.err, t.n, t.file, t.buffer, t.offset = nil, nil, nil, 0, nil, nil, 0
	t.phase.Store(running)
	w.pool.Put(t)
}

// execute runs the task in a worker. It returns false if the task has no result within the limit, or if cancelled or
// ended is closed before: then the task must not be used any more. The limit includes the time until a worker is
// available.
func (w *workers) execute(t *task, limit time.Duration, cancelled <-chan struct{}) bool {
	t.timer.Reset(limit)
	select {
	case w.tasks <- t:
	default:
		if w.start(t) {
			break
		}
		select {
		case w.tasks <- t:
		case <-t.timer.C:
			return false
		case <-cancelled:
			t.timer.Stop()
			return false
		case <-w.ended:
			t.timer.Stop()
			return false
		}
	}
	select {
	case <-t.done:
		t.timer.Stop()
		return true
	case <-t.timer.C:
	case <-cancelled:
		t.timer.Stop()
	}
	// The counter is increased first, so that it is never negative.
	w.blocked.Add(1)
	if t.phase.CompareAndSwap(running, abandoned) {
		return false
	}
	w.blocked.Add(-1)
	<-t.done
	return true
}

// start runs the task in a new worker. It returns false if the number of workers is at its limit, or after close.
func (w *workers) start(t *task) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.count.Load() >= w.max {
		return false
	}
	w.count.Add(1)
	w.group.Go(func() {
		defer w.count.Add(-1)
		w.run(t)
		for w.idle.Add(1) <= maxIdleWorkers {
			select {
			case t := <-w.tasks:
				w.idle.Add(-1)
				w.run(t)
			case <-w.ended:
				w.idle.Add(-1)
				return
			}
		}
		w.idle.Add(-1)
	})
	return true
}

// run executes one task.
func (w *workers) run(t *task) {
	t.work(t)
	if t.phase.CompareAndSwap(running, finished) {
		t.done <- struct{}{}
		return
	}
	if t.late != nil && t.err == nil {
		t.late(t)
	}
	w.blocked.Add(-1)
	w.returned()
}

// close rejects further tasks and waits until the workers have ended, at most for the given time: a worker with a blocked
// system call ends when that call returns.
func (w *workers) close(limit time.Duration) {
	w.mu.Lock()
	first := !w.closed
	w.closed = true
	w.mu.Unlock()
	if !first {
		return
	}
	close(w.ended)
	all := make(chan struct{})
	go func() {
		w.group.Wait()
		close(all)
	}()
	select {
	case <-all:
	case <-time.After(limit):
	}
}

// isClosed reports whether close was called.
func (w *workers) isClosed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closed
}
