// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/registry-cache/extension/test/testbed/upstream"
)

// coldPull compares first pulls through a cache with direct pulls, for several round trip times to the upstream.
func coldPull(ctx context.Context, b *bench) error {
	layers := repeated(4, 25*mebibyte)
	if b.quick {
		layers = repeated(4, mebibyte)
	}
	for _, shape := range []struct {
		name    string
		shaping upstream.Shaping
	}{
		{"rtt=0ms", upstream.Shaping{}},
		{"rtt=20ms", upstream.Shaping{Latency: 20 * time.Millisecond}},
		{"rtt=80ms", upstream.Shaping{Latency: 80 * time.Millisecond}},
		{"rtt=20ms/line=1Gbit", upstream.Shaping{Latency: 20 * time.Millisecond, BytesPerSecond: 125e6}},
		{"rtt=80ms/line=1Gbit", upstream.Shaping{Latency: 80 * time.Millisecond, BytesPerSecond: 125e6}},
	} {
		for range b.rounds {
			for _, name := range append([]string{direct}, caches...) {
				if err := b.coldPullOf(ctx, "cold/"+shape.name, name, shape.shaping, layers); err != nil {
					return fmt.Errorf("%s of %s: %w", shape.name, name, err)
				}
			}
		}
	}
	return b.coldGrid(ctx)
}

// coldGrid measures first pulls of images of other sizes. They take longer, so it uses fewer rounds.
func (b *bench) coldGrid(ctx context.Context) error {
	sizes, layers, rtts, rounds := []int64{10, 100, 1000}, []int{1, 4, 20}, []int{0, 20, 80}, min(b.rounds, gridRounds)
	if b.quick {
		sizes, layers, rtts = []int64{1, 4}, []int{1, 4}, []int{0, 20}
	}
	for _, size := range sizes {
		if size >= 1000 {
			rounds = 1
		}
		for _, n := range layers {
			i, err := b.push(ctx, repeated(n, size*1e6/int64(n))...)
			if err != nil {
				return err
			}
			for range rounds {
				for _, rtt := range rtts {
					for _, name := range append([]string{direct}, caches...) {
						series := fmt.Sprintf("cold/size=%dMB/layers=%d/rtt=%dms", size, n, rtt)
						if err := b.pullCold(ctx, series, name, upstream.Shaping{Latency: time.Duration(rtt) * time.Millisecond}, i); err != nil {
							return fmt.Errorf("%s of %s: %w", series, name, err)
						}
					}
				}
			}
		}
	}
	return nil
}

// coldProxy measures the time and the processor time of first pulls through caches with and without a verification.
func coldProxy(ctx context.Context, b *bench) error {
	layers := repeated(10, 20*mebibyte)
	if b.quick {
		layers = repeated(10, mebibyte)
	}
	for range b.rounds {
		for _, name := range []string{direct, nginx, ours} {
			if err := b.coldPullOf(ctx, "proxy/layers=10", name, upstream.Shaping{}, layers); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

func (b *bench) coldPullOf(ctx context.Context, series, name string, shaping upstream.Shaping, layers []int64) error {
	i, err := b.push(ctx, layers...)
	if err != nil {
		return err
	}
	return b.pullCold(ctx, series, name, shaping, i)
}

// pullCold measures the pull of an image through a new cache.
func (b *bench) pullCold(ctx context.Context, series, name string, shaping upstream.Shaping, i image) (err error) {
	url, ca := b.origin.url, b.origin.ca
	var e *engine
	if name != direct {
		if e, err = b.engine(ctx, name, engineOptions{}); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, e.close()) }()
		url, ca = e.url, e.ca
		// A cache in use has a connection to its upstream and has read its certificates.
		other, err := b.push(ctx, 1000)
		if err != nil {
			return err
		}
		if err := e.warm(ctx, other); err != nil {
			return err
		}
	}
	c, err := newClient(url, ca)
	if err != nil {
		return err
	}
	defer c.close()
	if err := b.origin.admin.Shape(ctx, shaping); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.origin.admin.Shape(ctx, upstream.Shaping{})) }()
	pull := func() error {
		began := time.Now()
		if err := c.pull(ctx, i); err != nil {
			return err
		}
		b.results.Add(series, name, "s", time.Since(began).Seconds())
		return nil
	}
	if e == nil {
		return pull()
	}
	used, err := e.during(pull)
	if err != nil {
		return err
	}
	b.results.Add(series, name, "cpu-s", used.cpuSeconds)
	return nil
}
