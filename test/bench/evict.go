// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/registry-cache/extension/test/bench/result"
)

// evictWhileServing compares the latency of requests for a stored manifest during and after the eviction of all other
// content. It also measures the time for a manifest from the upstream during the eviction.
func evictWhileServing(ctx context.Context, b *bench) error {
	n := 100_000
	if b.quick {
		n = 2000
	}
	// One round, because it takes minutes and each percentile is computed from thousands of requests. This server is
	// first, because it leaves no content that must be deleted before the second volume can be created.
	for _, name := range []string{ours, stock} {
		lastUse := time.Now().Add(-30 * 24 * time.Hour)
		v, err := b.expiredVolume(ctx, n, lastUse)
		if err == nil && name == stock {
			err = v.writeStockState(n, lastUse)
		}
		if err == nil {
			err = b.evict(ctx, name, v, n)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// evictTimeout is the limit for one engine. An engine needs up to seven minutes on two processors.
const evictTimeout = 12 * time.Minute

// stockStateFile is the file with the expiry times of the stock registry.
const stockStateFile = "scheduler-state.json"

// writeStockState records an expiry time in the past for n blobs of the volume.
func (v volume) writeStockState(n int, expired time.Time) error {
	type entry struct {
		Key        string
		ExpiryData time.Time
		EntryType  int // 0: a blob
	}
	entries := make(map[string]entry, n)
	for k := range n {
		key := fillerRepository(k) + "@" + fillerDigest(k).String()
		entries[key] = entry{Key: key, ExpiryData: expired}
	}
	content, err := json.Marshal(entries)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(v.root, stockStateFile), content, 0o644)
}

// evicted returns an error until the engine has deleted all n blobs of the volume.
func (e *engine) evicted(ctx context.Context, v volume, n int) error {
	if e.name == stock {
		// The stock registry writes the file after all expired timers, which wait for the same lock.
		info, err := os.Stat(filepath.Join(v.root, stockStateFile))
		if err == nil && info.Size() > int64(n) {
			err = fmt.Errorf("%s still has %d bytes", stockStateFile, info.Size())
		}
		return err
	}
	// A killed server leaves content that is deleted for a different reason.
	deleted, err := e.metric(ctx, `registry_cache_evictions_total{reason="expired"}`)
	if err == nil && deleted < float64(n) {
		err = fmt.Errorf("%.0f of %d blobs were deleted", deleted, n)
	}
	return err
}

func (b *bench) evict(ctx context.Context, name string, v volume, n int) (err error) {
	cold, err := b.push(ctx, 1)
	if err != nil {
		return err
	}
	e, err := b.engine(ctx, name, engineOptions{Root: v.root})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	series := fmt.Sprintf("evict/blobs=%d", n)
	var coldTook time.Duration
	busy, err := e.paced(ctx, v.image, func(ctx context.Context) error {
		c, err := newClient(e.url, e.ca)
		if err != nil {
			return err
		}
		defer c.close()
		began := time.Now()
		if _, err := c.manifest(ctx, cold.repository, cold.digest); err != nil {
			return fmt.Errorf("while the volume expires: %w", err)
		}
		coldTook = time.Since(began)
		return poll(ctx, evictTimeout, func() error { return e.evicted(ctx, v, n) })
	})
	if err != nil {
		return err
	}
	took := time.Since(e.started)
	if err := v.checkNoFiller(n); err != nil {
		return fmt.Errorf("after all should have been deleted: %w", err)
	}
	idle, err := e.paced(ctx, v.image, func(ctx context.Context) error {
		select {
		case <-time.After(min(took, 10*time.Second)):
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	if err != nil {
		return err
	}
	b.results.Add(series, name, "evicting-s", took.Seconds())
	b.results.Add(series, name, "cold-evicting-s", coldTook.Seconds())
	b.results.Add(series, name, "p99-evicting-s", result.Percentile(busy, 99))
	b.results.Add(series, name, "p99-idle-s", result.Percentile(idle, 99))
	return nil
}

// paced sends requests at a constant rate until the work is done, and returns their durations in seconds.
func (e *engine) paced(ctx context.Context, i image, work func(context.Context) error) ([]float64, error) {
	const clients, pause = 4, 5 * time.Millisecond
	done := make(chan struct{})
	times := make([][]float64, clients)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(done)
		return work(ctx)
	})
	g.Go(func() error {
		return e.each(ctx, clients, func(ctx context.Context, n int, c *client) error {
			tick := time.NewTicker(pause)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
				case <-done:
					return nil
				}
				began := time.Now()
				if _, err := c.manifest(ctx, i.repository, i.digest); err != nil {
					return err
				}
				times[n] = append(times[n], time.Since(began).Seconds())
			}
		})
	})
	err := g.Wait()
	var all []float64
	for _, t := range times {
		all = append(all, t...)
	}
	return all, err
}
