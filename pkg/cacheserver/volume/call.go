// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"io/fs"
	"time"
)

// run is do for calls without a result.
func run(f *FS, op Op, path string, work func() error) error {
	_, err := do(f, op, path, func() (struct{}, error) { return struct{}{}, work() }, nil)
	return err
}

// do executes work, which calls op, within the deadline of op. If work returns a result after the deadline, late gets it.
func do[T any](f *FS, op Op, path string, work func() (T, error), late func(T)) (T, error) {
	// The result is on the heap, and is read only after the worker has finished.
	result := new(T)
	t := f.workers.get()
	t.work = func(t *task) { *result, t.err = work() }
	if late != nil {
		t.late = func(*task) { late(*result) }
	}
	limit := f.timeout
	if op == OpSyncDir {
		limit = f.syncTimeout
	}
	if err := f.execute(t, op, path, limit); err != nil {
		return *new(T), err
	}
	err := t.err
	f.workers.put(t)
	f.health.observe(op, err)
	return *result, err
}

// execute runs the task. After an error the task has no result and must not be used.
func (f *FS) execute(t *task, op Op, path string, limit time.Duration) error {
	g := f.health.gate.Load()
	if g.hung {
		return hung(op, path)
	}
	if f.workers.execute(t, limit, g.released) {
		return nil
	}
	if f.workers.isClosed() {
		return &fs.PathError{Op: string(op), Path: path, Err: errClosed}
	}
	err := hung(op, path)
	f.health.observe(op, err)
	return err
}
