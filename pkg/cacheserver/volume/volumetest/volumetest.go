// SPDX-License-Identifier: Apache-2.0

// Package volumetest provides faults of volumes for tests, see volume.Options.Fault.
package volumetest

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

// Fault is a volume.Options.Fault. The faults of this package are safe for concurrent use.
type Fault = func(op volume.Op, path string) error

// New returns file system calls with a fault. Their deadlines are too long to expire on a busy machine. They are closed at
// the end of the test.
func New(t testing.TB, fault Fault) *volume.FS {
	t.Helper()
	files := volume.New(t.TempDir(), volume.Options{Timeout: time.Minute, SyncTimeout: time.Minute, Fault: fault})
	t.Cleanup(files.Close)
	return files
}

// Monitored is New with a monitored health.
func Monitored(t testing.TB, fault Fault) *volume.FS {
	t.Helper()
	files := New(t, fault)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		files.Monitor(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return files
}

// Fail lets each call of the operations fail with err.
func Fail(err error, ops ...volume.Op) Fault {
	return func(op volume.Op, _ string) error {
		if slices.Contains(ops, op) {
			return err
		}
		return nil
	}
}

// After lets the first n calls succeed that would fail with the fault.
func After(n int64, fault Fault) Fault {
	var failed atomic.Int64
	return func(op volume.Op, path string) error {
		err := fault(op, path)
		if err != nil && failed.Add(1) <= n {
			return nil
		}
		return err
	}
}

// While limits the fault to the time in which on is true.
func While(on *atomic.Bool, fault Fault) Fault {
	return func(op volume.Op, path string) error {
		if !on.Load() {
			return nil
		}
		return fault(op, path)
	}
}

// Count is no fault: it adds the calls of the operations to n.
func Count(n *atomic.Int64, ops ...volume.Op) Fault {
	return func(op volume.Op, _ string) error {
		if slices.Contains(ops, op) {
			n.Add(1)
		}
		return nil
	}
}
