// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

// Collector deletes content when the store needs space. Package gc implements it. Its methods are safe for concurrent
// use and do not block, except MakeRoom.
type Collector interface {
	// Grown: content was added.
	Grown()
	// Full: a write has failed because the volume is full.
	Full()
	// Reserve reserves bytes of the configured size of the cache. Errors wrap EDQUOT if that is exceeded. Release reverts it.
	Reserve(bytes int64) error
	Release(bytes int64)
	// Fits reports whether an object of size bytes fits on the volume if other content is deleted. It returns false if the usage
	// of the volume is unknown.
	Fits(size int64) bool
	// MakeRoom evicts content of missing bytes for an object of size bytes, which is at least as much, if the object can fit.
	// Then it calls reserve until that finds space. It returns the last error of reserve. It returns within a few seconds.
	MakeRoom(ctx context.Context, size, missing int64, reserve func() error) error
	// Dropped: corrupt content was deleted for a reason.
	Dropped(v evict.Victim, reason string)
	// Served: a client has read the content, or a part of it. It is verified again if the last verification is not recent.
	Served(d digest.Digest)
	// Now returns the time of a use that happens now. It differs from the system clock if that is wrong.
	Now() time.Time
}

// noCollector is the Collector of a store without garbage collection.
type noCollector struct{}

func (noCollector) Grown()          {}
func (noCollector) Full()           {}
func (noCollector) Fits(int64) bool { return true }
func (noCollector) MakeRoom(_ context.Context, _, _ int64, reserve func() error) error {
	return reserve()
}
func (noCollector) Reserve(int64) error { return nil }
func (noCollector) Release(int64)       {}

func (noCollector) Dropped(evict.Victim, string) {}
func (noCollector) Served(digest.Digest)         {}

func (noCollector) Now() time.Time { return time.Now() }

// collectorRef is the current collector of a store. It is safe for concurrent use.
type collectorRef struct{ current atomic.Pointer[Collector] }

func newCollectorRef() *collectorRef {
	r := &collectorRef{}
	r.set(noCollector{})
	return r
}

func (r *collectorRef) get() Collector { return *r.current.Load() }

func (r *collectorRef) set(c Collector) { r.current.Store(&c) }
