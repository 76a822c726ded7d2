// SPDX-License-Identifier: Apache-2.0

// Package gc deletes content from a store: unreferenced content, expired content, and the least recently used content of
// a volume that is too full. It builds the index of the store from its volume, and records the last use of each object on
// the volume. Package evict decides the order of deletions.
package gc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

const (
	// checkInterval bounds the delay until an expired object is deleted, and until a larger volume is noticed.
	checkInterval = 10 * time.Second
	// saveInterval bounds the last uses that are lost when the process is killed. It is short compared with any useful TTL.
	saveInterval = 5 * time.Minute
	// settleTime is the time after which a volume shows the space of deleted files: XFS frees it in the background.
	settleTime = time.Second
	// scanRetryInterval is the time between two attempts to index a volume that cannot be read.
	scanRetryInterval = time.Minute
	// maxScans is the number of attempts after which the parts of a volume that are still unreadable count as missing: their
	// content cannot be served, but others need its space.
	maxScans = 3
	// roomTimeout bounds how long a pull waits for eviction before it bypasses the store.
	roomTimeout = 2 * time.Second
	// roomInterval is the time between two attempts to reserve space during roomTimeout.
	roomInterval = 20 * time.Millisecond
	// exhaustedTime is how long no pull waits for eviction after one that has found nothing more to delete.
	exhaustedTime = 5 * time.Second
)

// Options are the optional parts of a Collector.
type Options struct {
	// Limits define when content is deleted. The zero value deletes nothing.
	Limits evict.Limits
	// Size returns the current Limits.Size. It is called every ten seconds. Default: that of Limits.
	Size func() int64
	// FileSystem returns the usage of the volume. Default: Statfs of the store.
	FileSystem func() (Space, error)
	// Wall returns the time of the system clock. Default: time.Now. Tests set it to a wrong clock.
	Wall func() time.Time
	// Built is the time at which the program was built. An earlier time of the system clock is wrong. Default: none.
	Built time.Time
	// Logger gets the progress. Default: discarded.
	Logger *slog.Logger
	// Registerer gets the metrics. Default: none.
	Registerer prometheus.Registerer
}

// Collector is the garbage collector of one store. It implements store.Collector.
type Collector struct {
	volume      store.Maintenance
	index       *evict.Index
	limits      evict.Limits // without Size
	currentSize func() int64
	fileSystem  func() (Space, error)
	log         *slog.Logger
	metrics     *metrics
	clock       *clock
	meter       meter
	evictor     evictor
	records     map[digest.Digest]record // until the index is complete
	saved       []byte                   // the last content of the file of last uses

	// grown and full contain at most one element: content was added, a write has found the volume full.
	grown, full chan struct{}
	requests    chan roomRequest
	served      *served
	size        atomic.Int64 // Limits.Size
	reserved    atomic.Int64 // bytes that downloads have reserved
	indexed     atomic.Bool  // the index is complete, and Run receives requests
	exhausted   atomic.Int64 // end of exhaustedTime, Unix time in nanoseconds
}

// New returns the collector of a store and reads the recorded last uses. Nothing is deleted before Run.
func New(s *store.Store, o Options) *Collector {
	c := &Collector{
		limits:     o.Limits,
		fileSystem: o.FileSystem,
		log:        o.Logger,
		grown:      make(chan struct{}, 1),
		full:       make(chan struct{}, 1),
		requests:   make(chan roomRequest),
		served:     newServed(s.VerifiedSince),
	}
	c.currentSize = o.Size
	if c.currentSize == nil {
		c.currentSize = func() int64 { return o.Limits.Size }
	}
	c.size.Store(c.currentSize())
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if o.Wall == nil {
		o.Wall = func() time.Time { return time.Now().Round(0) } // without the monotonic reading
	}
	// The clock first: the store uses it as soon as it has a collector.
	c.clock = newClock(o.Wall, o.Built)
	c.volume = s.Maintain(c)
	c.index = c.volume.Index()
	reader := c.volume.Reader()
	if c.fileSystem == nil {
		c.fileSystem = c.statfs
	}
	records, invalid, err := readRecords(reader)
	if err != nil || invalid > 0 {
		c.log.Warn("The record of last uses is incomplete; the times of the files are used instead", "invalidLines", invalid, "error", err)
	}
	c.records = records
	sizes := map[digest.Digest]int64{}
	for d, r := range records {
		if r.size >= 0 {
			sizes[d] = r.size
		}
	}
	c.volume.SetRecordedSizes(sizes)
	c.clock.start(newest(records))
	c.metrics = newMetrics(o.Registerer, measurements{usage: c.usage, limits: c.currentLimits, oldestAge: c.oldestAge})
	c.evictor = evictor{index: c.index, volume: c.volume, requests: c.requests, metrics: c.metrics, log: c.log}
	return c
}

// Grown implements store.Collector.
func (c *Collector) Grown() { signal(c.grown) }

// Full implements store.Collector.
func (c *Collector) Full() { signal(c.full) }

// Dropped implements store.Collector.
func (c *Collector) Dropped(v evict.Victim, reason string) {
	c.metrics.countRemoval(v)
	c.log.Warn("Deleted corrupt content", "digest", v.Digest, "reason", reason, "bytes", v.Size)
}

// Served implements store.Collector.
func (c *Collector) Served(d digest.Digest) { c.served.add(d, time.Now()) }

// Now implements store.Collector.
func (c *Collector) Now() time.Time {
	now, _ := c.clock.now()
	return now
}

// signal leaves one element in the channel.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Fits implements store.Collector.
func (c *Collector) Fits(size int64) bool {
	u, err := c.usage()
	return err == nil && c.currentLimits().Fits(u, size)
}

// MakeRoom implements store.Collector.
func (c *Collector) MakeRoom(ctx context.Context, size, missing int64, reserve func() error) error {
	if !c.canMakeRoom(size) {
		return reserve()
	}
	ctx, cancel := context.WithTimeout(ctx, roomTimeout)
	defer cancel()
	r := newRoomRequest(missing)
	select {
	case c.requests <- r:
	case <-ctx.Done():
		return reserve()
	}
	select {
	case freed := <-r.done:
		if !freed {
			c.exhausted.Store(time.Now().Add(exhaustedTime).UnixNano())
			return reserve()
		}
	case <-ctx.Done():
	}
	tick := time.NewTicker(roomInterval)
	defer tick.Stop()
	for {
		err := reserve()
		if !volume.IsFull(err) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

// canMakeRoom reports whether eviction can free space for an object of this size.
func (c *Collector) canMakeRoom(size int64) bool {
	now := time.Now()
	if c.limits.TTL <= 0 || !c.indexed.Load() || now.UnixNano() < c.exhausted.Load() || !c.meter.isEffective(now) {
		return false
	}
	return c.Fits(size)
}

// Reserve implements store.Collector.
func (c *Collector) Reserve(bytes int64) error {
	reserved := c.reserved.Add(bytes)
	if limits := c.currentLimits(); limits.Size > 0 && c.index.Stats().Bytes+c.volume.PartialBytes()+reserved > limits.Size {
		c.reserved.Add(-bytes)
		return fmt.Errorf("the cache may use %d bytes: %w", limits.Size, syscall.EDQUOT)
	}
	return nil
}

// Release implements store.Collector.
func (c *Collector) Release(bytes int64) { c.reserved.Add(-bytes) }

// currentLimits returns the limits with the current size.
func (c *Collector) currentLimits() evict.Limits {
	l := c.limits
	l.Size = c.size.Load()
	return l
}

// oldestAge returns the time since the last use of the least recently used object, 0 without objects.
func (c *Collector) oldestAge() time.Duration {
	oldest := c.index.Oldest()
	if oldest.IsZero() {
		return 0
	}
	return max(c.Now().Sub(oldest), 0)
}

func (c *Collector) statfs() (Space, error) {
	stat, err := c.volume.Statfs()
	return spaceOf(stat), err
}

// usage measures the volume.
func (c *Collector) usage() (evict.Usage, error) {
	reserved := c.reserved.Load() // first: a download that is stored in between is counted twice instead of not at all
	stats := c.index.Stats()
	u := evict.Usage{Own: stats.Bytes + reserved, Reserved: reserved, Removable: stats.Removable, Objects: stats.Objects}
	s, err := c.fileSystem()
	u.FileSystem, u.Inodes = s.Bytes, s.Inodes
	return u, err
}

// Run indexes the volume, then deletes content and records last uses until ctx ends. The last uses are recorded again
// before it returns. It may be called once.
func (c *Collector) Run(ctx context.Context) {
	if !c.buildIndex(ctx) {
		return
	}
	c.indexed.Store(true)
	defer c.indexed.Store(false)
	v := &verifier{c.volume, c.index, c.served, c.log}
	var verification sync.WaitGroup
	verification.Go(func() { v.run(ctx, c.index.Records()) })
	defer verification.Wait()
	check, save := time.NewTicker(checkInterval), time.NewTicker(saveInterval)
	defer check.Stop()
	defer save.Stop()
	var limit int64
	full := false
	var settled <-chan time.Time // nil unless the volume may not show the deleted files yet
	deleteContent := func(need evict.Need, u evict.Usage, requests ...roomRequest) {
		if freed := c.evictor.evict(ctx, c.expiryTime, need, requests...); freed > 0 {
			c.meter.recordDeletion(u, freed, time.Now())
			settled = time.After(settleTime)
		}
	}
	c.save()
	for {
		c.checkClock()
		c.size.Store(c.currentSize())
		usage, err := c.usage()
		if err != nil {
			c.log.Warn("Cannot measure the volume", "error", err)
		} else {
			if limit != 0 && limit != usage.FileSystem.Limit {
				c.log.Info("The size of the volume has changed", "before", limit, "now", usage.FileSystem.Limit)
			}
			limit = usage.FileSystem.Limit
		}
		if settled == nil {
			deleteContent(c.need(usage, full), usage)
			full = false
		}
		select {
		case <-check.C:
			c.volume.DiscardAgain()
		case <-settled:
			settled = nil
		case <-c.grown:
		case <-c.full:
			// While deletions are not visible yet, further failed writes require no further deletions.
			full = full || settled == nil
		case r := <-c.requests:
			full = true // further requests will follow
			deleteContent(evict.Need{}, usage, r)
		case <-save.C:
			c.save()
		case <-ctx.Done():
			c.save()
			return
		}
	}
}

// need returns the amounts that must be evicted. If the last deletions have not freed space of the file system, its limits
// do not apply.
func (c *Collector) need(u evict.Usage, full bool) evict.Need {
	now := time.Now()
	if !c.meter.compare(u, now) {
		c.log.Warn("Deletions do not free space on the volume; nothing is deleted for space of the file system", "duration", ineffectiveTime.String())
	}
	if !c.meter.isEffective(now) {
		u.FileSystem, u.Inodes = evict.Amount{}, evict.Amount{}
		full = full && c.currentLimits().Size > 0 && !c.currentLimits().Allows(u, 1)
	}
	return c.currentLimits().Need(u, full)
}

// buildIndex adds the objects of the volume to the index. It returns false if ctx ends first.
func (c *Collector) buildIndex(ctx context.Context) bool {
	for scans := 1; ; scans++ {
		began := time.Now()
		found := &cleaner{volume: c.volume, log: c.log, enabled: c.limits.TTL > 0}
		x := &indexer{index: c.index, records: c.records, now: c.Now(), findings: found}
		err := x.build(ctx, c.volume.Reader())
		if err == nil && found.unreadableParts > 0 && scans < maxScans {
			err = fmt.Errorf("%d parts are unreadable", found.unreadableParts)
		}
		if err == nil {
			c.records = nil
			c.index.Complete()
			if c.limits.TTL > 0 {
				removeDistributionState(c.volume, c.log)
			}
			c.log.Info("Indexed the volume", "objects", c.index.Stats().Objects, "duration", time.Since(began).String())
			return true
		}
		if ctx.Err() == nil {
			c.log.Warn("Cannot index the volume; nothing is deleted until that succeeds", "error", err)
		}
		select {
		case <-time.After(scanRetryInterval):
		case <-ctx.Done():
			return false
		}
	}
}

// checkClock moves the last uses if the system clock was set.
func (c *Collector) checkClock() {
	now, shift := c.clock.check()
	if shift == 0 {
		return
	}
	c.log.Info("The clock was set; last uses are moved by the same duration", "step", shift.String())
	c.index.Shift(shift, now)
}

// expiryTime returns the time for the expiry of objects, zero if the current time is unknown.
func (c *Collector) expiryTime() time.Time {
	now, trusted := c.clock.now()
	if !trusted {
		return time.Time{}
	}
	return now
}

// save records the last uses on the volume, for this server and for a stock registry, if they have changed.
func (c *Collector) save() {
	records := c.index.Records()
	content := formatRecords(records)
	if bytes.Equal(content, c.saved) {
		return
	}
	root := c.volume.Reader().Root
	err := c.volume.WriteFile(root.LastUses(), func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
	// Without a TTL, a stock registry deletes nothing and keeps no state.
	if c.limits.TTL > 0 {
		err = errors.Join(err, c.volume.WriteFile(root.DistributionState(), func(w io.Writer) error {
			return writeDistributionState(w, records, c.limits.TTL)
		}))
	}
	if err != nil {
		c.log.Warn("Cannot record last uses", "error", err)
		return
	}
	c.saved = content
}
