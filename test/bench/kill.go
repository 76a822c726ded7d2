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

	"github.com/registry-cache/extension/test/testbed/upstream"
)

// killedInHerd sends SIGKILL to an engine with a full volume while clients pull one uncached blob, and restarts it. It
// measures the time until all clients have the verified blob, and the bytes that the upstream sent in total.
func killedInHerd(ctx context.Context, b *bench) error {
	n, size := 100_000, int64(64*mebibyte)
	if b.quick {
		n, size = 2000, 4*mebibyte
	}
	v, err := b.fullVolume(ctx, n)
	if err != nil {
		return err
	}
	for range b.rounds {
		for _, name := range caches {
			if err := b.killIn(ctx, name, v, size, fmt.Sprintf("kill/blobs=%d", n)); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

func (b *bench) killIn(ctx context.Context, name string, v volume, size int64, series string) (err error) {
	const clients = 5
	e, i, err := b.engineWithoutLayer(ctx, name, engineOptions{Root: v.root}, size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	layer := i.layer()
	// A fetch takes two seconds, so that SIGKILL interrupts all clients.
	if err := errors.Join(b.origin.admin.ResetRequests(ctx), b.origin.admin.Shape(ctx, upstream.Shaping{BytesPerSecond: size / 2})); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.origin.admin.Shape(context.WithoutCancel(ctx), upstream.Shaping{})) }()
	someHasAQuarter, reached := context.WithCancel(ctx)
	defer reached()
	var killed atomic.Bool
	ended := make(chan error, 1)
	go func() {
		defer reached() // also after an error
		ended <- e.each(ctx, clients, func(ctx context.Context, _ int, c *client) error {
			err := c.readAll(ctx, i.repository, layer, layer.size/4, reached)
			switch {
			case killed.Load():
				return nil // any error is expected after SIGKILL
			case err == nil:
				err = errors.New("a client had the blob before the server was killed")
			}
			return err
		})
	}()
	<-someHasAQuarter.Done()
	killed.Store(true)
	if err := errors.Join(e.kill(), <-ended); err != nil {
		return err
	}
	again, err := b.engine(ctx, name, engineOptions{Root: v.root})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, again.close()) }()
	err = again.each(ctx, clients, func(ctx context.Context, _ int, c *client) error {
		if _, err := c.manifest(ctx, i.repository, i.digest); err != nil {
			return err
		}
		return c.fetch(ctx, i.repository, layer, true)
	})
	if err != nil {
		return fmt.Errorf("after it was killed: %w", err)
	}
	took := time.Since(again.started)
	requests, err := b.origin.admin.Requests(ctx, 0)
	if err != nil {
		return err
	}
	var sent int64
	for _, r := range requests {
		if r.Kind == upstream.Blob {
			sent += r.Bytes
		}
	}
	b.results.Add(series, name, "after-kill-s", took.Seconds())
	b.results.Add(series, name, "sent-B/blob-B", float64(sent)/float64(layer.size))
	return nil
}

// readAll reads a blob, and calls reached after the first n bytes.
func (c *client) readAll(ctx context.Context, repository string, b blob, first int64, reached func()) error {
	resp, err := c.do(ctx, http.MethodGet, "/v2/"+repository+"/blobs/"+b.digest)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.CopyN(io.Discard, resp.Body, first); err != nil {
		return err
	}
	reached()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
