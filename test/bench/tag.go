// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// warmTag measures upstream requests and writes to the volume of HEAD requests for an unchanged tag.
func warmTag(ctx context.Context, b *bench) error {
	i, err := b.push(ctx, 1000)
	if err != nil {
		return err
	}
	return b.eachCache(ctx, engineOptions{RevalidateAfter: time.Minute}, func(_ int, e *engine) error {
		if err := e.warm(ctx, i); err != nil {
			return err
		}
		// Exclude delayed writes of the first pull.
		if err := b.settle(ctx, e); err != nil {
			return err
		}
		if err := b.origin.admin.ResetRequests(ctx); err != nil {
			return err
		}
		const clients, each = 10, 50
		used, err := e.during(func() error {
			return e.each(ctx, clients, func(ctx context.Context, _ int, c *client) error {
				for range each {
					if err := c.head(ctx, i); err != nil {
						return err
					}
				}
				return nil
			})
		})
		if err != nil {
			return err
		}
		requests, err := b.origin.admin.Requests(ctx, 0)
		if err != nil {
			return err
		}
		b.results.Add("tag/warm", e.name, "upstream-req/req", float64(len(requests))/(clients*each))
		b.results.Add("tag/warm", e.name, "written-B/req", float64(used.written)/(clients*each))
		return b.tagRate(ctx, e, i)
	})
}

// tagRate measures HEAD requests of a tag per second of CPU time.
func (b *bench) tagRate(ctx context.Context, e *engine, i image) error {
	duration := 2 * time.Second
	if b.quick {
		duration = time.Second / 2
	}
	var requests atomic.Int64
	used, err := e.during(func() error {
		return e.load(ctx, 16, duration, func(ctx context.Context, c *client) error {
			requests.Add(1)
			return c.head(ctx, i)
		})
	})
	if err != nil {
		return err
	}
	b.results.Add("tag/warm", e.name, "req/cpu-s", float64(requests.Load())/used.cpuSeconds)
	return nil
}

// settle waits until the engine has written nothing for a second.
func (b *bench) settle(ctx context.Context, e *engine) error {
	var last int64 = -1
	quiet := time.Now()
	return poll(ctx, startTimeout, func() error {
		used, err := e.usage()
		if err != nil {
			return err
		}
		if used.written != last {
			last, quiet = used.written, time.Now()
		}
		if time.Since(quiet) < time.Second {
			return errors.New("the engine still writes")
		}
		return nil
	})
}
