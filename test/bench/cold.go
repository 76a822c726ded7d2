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

// herd lets many clients pull one cold blob at once, and looks at what that costs the upstream.
func herd(ctx context.Context, b *bench) error {
	// The stock registry fetches the blob for each client, which fills volume and time.
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
				if err := b.herdOf(ctx, name, clients, size, false); err != nil {
					return fmt.Errorf("%d clients of %s: %w", clients, name, err)
				}
			}
			if err := b.herdOf(ctx, name, 10, size, true); err != nil {
				return fmt.Errorf("clients of %s whose first one leaves: %w", name, err)
			}
		}
	}
	return nil
}

// herdOf runs a herd. If leaves, one more client begins, and leaves when it has a part.
func (b *bench) herdOf(ctx context.Context, name string, clients int, size int64, leaves bool) (err error) {
	i, err := b.push(ctx, size)
	if err != nil {
		return err
	}
	layer := i.blobs[len(i.blobs)-1]
	e, err := b.engine(ctx, name, engineOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	// The blob must be known to belong to the repository before it is asked for: clients come with the manifest.
	c, err := newClient(e.url, e.ca)
	if err != nil {
		return err
	}
	defer c.close()
	if _, err := c.manifest(ctx, i.repository, i.digest); err != nil {
		return err
	}
	if err := b.origin.admin.ResetRequests(ctx); err != nil {
		return err
	}
	series := fmt.Sprintf("herd/clients=%d", clients)
	if leaves {
		series += "/first-leaves"
		if err := c.begin(ctx, i.repository, layer); err != nil {
			return err
		}
	}
	var mu sync.Mutex // guards seconds
	var seconds []float64
	err = e.each(ctx, clients, func(ctx context.Context, number int, c *client) error {
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
	b.results.Add(series, name, "max-s", result.Percentile(seconds, 100))
	return nil
}

// begin reads the beginning of a blob, and leaves.
func (c *client) begin(ctx context.Context, repository string, b blob) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, "/v2/"+repository+"/blobs/"+b.digest)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.CopyN(io.Discard, resp.Body, b.size/8)
	return err
}

// coldPull compares the first pull of an image with one that goes to the upstream, which is near or far away.
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
	return nil
}

func (b *bench) coldPullOf(ctx context.Context, series, name string, shaping upstream.Shaping, layers []int64) (err error) {
	i, err := b.push(ctx, layers...)
	if err != nil {
		return err
	}
	url, ca := b.origin.url, b.origin.ca
	if name != direct {
		e, err := b.engine(ctx, name, engineOptions{})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, e.close()) }()
		url, ca = e.url, e.ca
		// A cache in use has a connection to its upstream, and has read its certificates.
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
	began := time.Now()
	if err := c.pull(ctx, i); err != nil {
		return err
	}
	b.results.Add(series, name, "s", time.Since(began).Seconds())
	return nil
}
