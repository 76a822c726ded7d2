// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// gridRounds is the maximum number of rounds of measurements that are numerous or take a minute each.
const gridRounds = 2

// blobGrid measures the CPU time for stored blobs of other sizes and with other numbers of clients.
func blobGrid(ctx context.Context, b *bench) error {
	sizes, clients, duration, rounds := []int64{1, 64, 1024}, []int{1, 16, 256}, 2*time.Second, min(b.rounds, gridRounds)
	if b.quick {
		sizes, clients, duration = []int64{1, 4}, []int{1, 16}, 300*time.Millisecond
	}
	var stored []image
	for _, size := range sizes {
		i, err := b.push(ctx, size*mebibyte)
		if err != nil {
			return err
		}
		stored = append(stored, i)
	}
	for _, tls := range []bool{false, true} {
		err := b.eachCache(ctx, engineOptions{TLS: tls}, func(round int, e *engine) error {
			if round >= rounds {
				return nil
			}
			for k, i := range stored {
				if err := e.warm(ctx, i); err != nil {
					return err
				}
				for _, n := range clients {
					series := fmt.Sprintf("blob/%s/size=%dMiB/clients=%d", scheme(tls), sizes[k], n)
					if err := b.readFor(ctx, e, series, i, n, duration); err != nil {
						return fmt.Errorf("%s: %w", series, err)
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// readFor lets connected clients read the layer of the image repeatedly for the duration, and returns the received bytes.
func (b *bench) readFor(ctx context.Context, e *engine, series string, i image, clients int, duration time.Duration) error {
	connected, err := e.connect(ctx, clients)
	defer func() {
		for _, c := range connected {
			c.close()
		}
	}()
	if err := errors.Join(err, e.resetPeak()); err != nil {
		return err
	}
	layer := i.layer()
	var received atomic.Int64
	var began time.Time
	used, err := e.during(func() error {
		began = time.Now()
		timed, cancel := context.WithDeadline(ctx, began.Add(duration))
		defer cancel()
		g, ctx := errgroup.WithContext(ctx)
		for _, c := range connected {
			g.Go(func() error {
				for {
					n, err := c.read(timed, i.repository, layer)
					received.Add(n)
					switch {
					case timed.Err() != nil && ctx.Err() == nil:
						return nil // The duration ended during or after a blob.
					case err != nil:
						return err
					case n != layer.size:
						return fmt.Errorf("blob %s: %d of %d bytes", layer.digest, n, layer.size)
					}
				}
			})
		}
		return g.Wait()
	})
	if err != nil {
		return err
	}
	gib := float64(received.Load()) / gibibyte
	if gib == 0 {
		return errors.New("received no bytes")
	}
	b.results.Add(series, e.name, "cpu-s/GiB", used.cpuSeconds/gib)
	b.results.Add(series, e.name, "GiB/s", gib/time.Since(began).Seconds())
	b.results.Add(series, e.name, "B", float64(used.peakRSS))
	return nil
}

// connect returns clients with established connections. The caller closes them, also after an error.
func (e *engine) connect(ctx context.Context, n int) ([]*client, error) {
	var all []*client
	g, ctx := errgroup.WithContext(ctx)
	for range n {
		c, err := newClient(e.url, e.ca)
		if err != nil {
			return all, errors.Join(err, g.Wait())
		}
		all = append(all, c)
		g.Go(func() error { return c.ping(ctx) })
	}
	return all, g.Wait()
}

// read reads a blob and returns the number of received bytes, also with an error.
func (c *client) read(ctx context.Context, repository string, b blob) (int64, error) {
	resp, err := c.do(ctx, http.MethodGet, "/v2/"+repository+"/blobs/"+b.digest)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, make([]byte, copyBuffer))
}
