// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	mebibyte = 1 << 20
	gibibyte = 1 << 30
)

// eachCache runs f on a new engine of each kind, in each round.
func (b *bench) eachCache(ctx context.Context, o engineOptions, f func(round int, e *engine) error) error {
	for round := range b.rounds {
		for _, name := range caches {
			e, err := b.engine(ctx, name, o)
			if err != nil {
				return err
			}
			if err := errors.Join(f(round, e), e.close()); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

// warm pulls the image through the engine until it is completely stored, as far as requests can detect it.
func (e *engine) warm(ctx context.Context, i image) error {
	c, err := newClient(e.url, e.ca)
	if err != nil {
		return err
	}
	defer c.close()
	return c.pull(ctx, i)
}

// during returns the resources that the engine used while f ran.
func (e *engine) during(f func() error) (usage, error) {
	before, err := e.usage()
	if err != nil {
		return usage{}, err
	}
	if err := f(); err != nil {
		return usage{}, err
	}
	after, err := e.usage()
	after.cpuSeconds -= before.cpuSeconds
	after.written -= before.written
	return after, err
}

// warmManifest measures requests for a stored manifest by digest per second of CPU time.
func warmManifest(ctx context.Context, b *bench) error {
	i, err := b.push(ctx, 1000)
	if err != nil {
		return err
	}
	clients, duration := 16, 5*time.Second
	if b.quick {
		duration = time.Second
	}
	return b.eachCache(ctx, engineOptions{}, func(_ int, e *engine) error {
		if err := e.warm(ctx, i); err != nil {
			return err
		}
		var requests atomic.Int64
		used, err := e.during(func() error {
			return e.load(ctx, clients, duration, func(ctx context.Context, c *client) error {
				requests.Add(1)
				_, err := c.manifest(ctx, i.repository, i.digest)
				return err
			})
		})
		b.results.Add("manifest/warm", e.name, "req/cpu-s", float64(requests.Load())/used.cpuSeconds)
		return err
	})
}

// each runs f concurrently with n new clients; i starts at 0.
func (e *engine) each(ctx context.Context, n int, f func(ctx context.Context, number int, c *client) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for number := range n {
		g.Go(func() error {
			c, err := newClient(e.url, e.ca)
			if err != nil {
				return err
			}
			defer c.close()
			return f(ctx, number, c)
		})
	}
	return g.Wait()
}

// load lets clients call f repeatedly for the duration.
func (e *engine) load(ctx context.Context, clients int, duration time.Duration, f func(context.Context, *client) error) error {
	end := time.Now().Add(duration)
	return e.each(ctx, clients, func(ctx context.Context, _ int, c *client) error {
		for time.Now().Before(end) {
			if err := f(ctx, c); err != nil {
				return err
			}
		}
		return nil
	})
}

// warmBlob measures the CPU time per GiB of a stored blob.
func warmBlob(ctx context.Context, b *bench) error {
	i, err := b.push(ctx, 64*mebibyte)
	if err != nil {
		return err
	}
	layer := i.layer()
	clients, each := 4, 16
	if b.quick {
		each = 2
	}
	for _, tls := range []bool{false, true} {
		name := "blob/warm/" + scheme(tls)
		err := b.eachCache(ctx, engineOptions{TLS: tls}, func(_ int, e *engine) error {
			if err := e.warm(ctx, i); err != nil {
				return err
			}
			began := time.Now()
			used, err := e.during(func() error {
				return e.each(ctx, clients, func(ctx context.Context, _ int, c *client) error {
					for range each {
						if err := c.fetch(ctx, i.repository, layer, false); err != nil {
							return err
						}
					}
					return nil
				})
			})
			if err != nil {
				return err
			}
			gib := float64(layer.size) * float64(clients*each) / gibibyte
			b.results.Add(name, e.name, "cpu-s/GiB", used.cpuSeconds/gib)
			b.results.Add(name, e.name, "GiB/s", gib/time.Since(began).Seconds())
			return nil
		})
		if err != nil {
			return err
		}
	}
	return blobGrid(ctx, b)
}

func scheme(tls bool) string {
	if tls {
		return "https"
	}
	return "http"
}
