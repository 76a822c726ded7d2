// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/registry-cache/extension/test/bench/result"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// herd measures the load of the upstream when many clients pull one uncached blob concurrently.
func herd(ctx context.Context, b *bench) error {
	// The stock registry fetches the blob for each client, which needs space on the volume and time.
	sizes := map[string][]int{stock: {1, 10, 50}, ours: {1, 10, 50, 100, 500}}
	size := int64(64 * mebibyte)
	if b.quick {
		sizes, size = map[string][]int{stock: {1, 5}, ours: {1, 5}}, 4*mebibyte
	}
	for round := range b.rounds {
		for _, name := range caches {
			for _, clients := range sizes[name] {
				if clients > 10 && round > 0 && name == stock {
					continue
				}
				if err := b.herdOf(ctx, name, clients, size, atOnce); err != nil {
					return fmt.Errorf("%d clients of %s: %w", clients, name, err)
				}
			}
			for _, v := range []herdVariant{firstLeaves, leaderLeaves, staggered} {
				if err := b.herdOf(ctx, name, 10, size, v); err != nil {
					return fmt.Errorf("clients of %s, %s: %w", name, v, err)
				}
			}
		}
	}
	return nil
}

// herdVariant describes a variation of the scenario. It is the last part of the name of the series.
type herdVariant string

const (
	atOnce herdVariant = ""
	// firstLeaves: an additional client starts first, and disconnects before the others start.
	firstLeaves herdVariant = "first-leaves"
	// leaderLeaves: an additional client starts first, and disconnects while the others read.
	leaderLeaves herdVariant = "leader-leaves"
	// staggered: the clients start one after the other within staggerTime.
	staggered herdVariant = "staggered"
)

const staggerTime = 2 * time.Second

// herdOf runs one variant.
func (b *bench) herdOf(ctx context.Context, name string, clients int, size int64, variant herdVariant) (err error) {
	e, i, err := b.engineWithoutLayer(ctx, name, engineOptions{}, size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	layer := i.layer()
	c, err := newClient(e.url, e.ca)
	if err != nil {
		return err
	}
	defer c.close()
	if err := b.origin.admin.ResetRequests(ctx); err != nil {
		return err
	}
	series := fmt.Sprintf("herd/clients=%d", clients)
	if variant != atOnce {
		series += "/" + string(variant)
	}
	switch variant {
	case firstLeaves:
		if err := c.begin(ctx, i.repository, layer, layer.size/8, func() {}); err != nil {
			return err
		}
	case leaderLeaves:
		begun, hasBegun := context.WithCancel(ctx)
		left := make(chan error, 1)
		go func() {
			defer hasBegun() // also after an error
			left <- c.begin(ctx, i.repository, layer, layer.size/2, hasBegun)
		}()
		defer func() { err = errors.Join(err, <-left) }()
		<-begun.Done()
	}
	var mu sync.Mutex // guards seconds
	var seconds []float64
	err = e.each(ctx, clients, func(ctx context.Context, number int, c *client) error {
		if variant == staggered {
			select {
			case <-time.After(staggerTime * time.Duration(number) / time.Duration(clients)):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		began := time.Now()
		err := c.fetch(ctx, i.repository, layer, number == 0)
		mu.Lock()
		defer mu.Unlock()
		seconds = append(seconds, time.Since(began).Seconds())
		return err
	})
	if err != nil {
		return err
	}
	requests, err := b.origin.admin.Requests(ctx, 0)
	if err != nil {
		return err
	}
	var received int64
	for _, r := range requests {
		if r.Kind == upstream.Blob {
			received += r.Bytes
		}
	}
	b.results.Add(series, name, "upstream-B/blob-B", float64(received)/float64(layer.size))
	b.results.Add(series, name, "p50-s", result.Percentile(seconds, 50))
	b.results.Add(series, name, "p95-s", result.Percentile(seconds, 95))
	b.results.Add(series, name, "max-s", result.Percentile(seconds, 100))
	return nil
}

// begin reads the first n bytes of a blob and disconnects. It calls begun after the first byte.
func (c *client) begin(ctx context.Context, repository string, b blob, bytes int64, begun func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, "/v2/"+repository+"/blobs/"+b.digest)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.CopyN(io.Discard, resp.Body, 1); err != nil {
		return err
	}
	begun()
	_, err = io.CopyN(io.Discard, resp.Body, bytes-1)
	return err
}
