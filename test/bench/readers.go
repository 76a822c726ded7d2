// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// slowReaders measures the memory of an engine with slow clients.
func slowReaders(ctx context.Context, b *bench) error {
	i, err := b.push(ctx, 64*mebibyte)
	if err != nil {
		return err
	}
	layer := i.layer()
	readers := 1000
	if b.quick {
		readers = 100
	}
	for _, tls := range []bool{false, true} {
		name := fmt.Sprintf("readers/%d/%s", readers, scheme(tls))
		err := b.eachCache(ctx, engineOptions{TLS: tls}, func(round int, e *engine) error {
			if round > 0 {
				return nil // one round: a peak has no useful spread
			}
			if err := e.warm(ctx, i); err != nil {
				return err
			}
			if err := e.resetPeak(); err != nil {
				return err
			}
			if err := e.readSlowly(ctx, readers, i.repository, layer); err != nil {
				return err
			}
			used, err := e.usage()
			b.results.Add(name, e.name, "B", float64(used.peakRSS))
			return err
		})
		if err != nil {
			return err
		}
	}
	return b.slowColdReaders(ctx, readers)
}

// slowColdReaders is slowReaders for a blob that is not stored. The stock registry fetches it for each client, so the
// number of clients for both engines is smaller.
func (b *bench) slowColdReaders(ctx context.Context, readers int) error {
	for _, herd := range []struct {
		engine  string
		readers int
	}{{stock, readers / 10}, {ours, readers / 10}, {ours, readers}} {
		if err := b.readCold(ctx, herd.engine, herd.readers); err != nil {
			return fmt.Errorf("%d readers of %s, cold: %w", herd.readers, herd.engine, err)
		}
	}
	return nil
}

func (b *bench) readCold(ctx context.Context, name string, readers int) (err error) {
	e, i, err := b.engineWithoutLayer(ctx, name, engineOptions{}, 64*mebibyte)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	if err := e.resetPeak(); err != nil {
		return err
	}
	if err := e.readSlowly(ctx, readers, i.repository, i.layer()); err != nil {
		return err
	}
	used, err := e.usage()
	b.results.Add(fmt.Sprintf("readers/%d/http/cold", readers), name, "B", float64(used.peakRSS))
	return err
}

// readSlowly lets clients read one blob concurrently, each 16 KiB every 200 ms, until some seconds after the last client
// started.
func (e *engine) readSlowly(ctx context.Context, readers int, repository string, layer blob) error {
	const reads = 25
	g, ctx := errgroup.WithContext(ctx)
	begun := make(chan struct{}, readers)
	all := make(chan struct{})
	for range readers {
		g.Go(func() error {
			c, err := newSlowClient(e.url, e.ca)
			if err != nil {
				return err
			}
			defer c.close()
			resp, err := c.do(ctx, http.MethodGet, "/v2/"+repository+"/blobs/"+layer.digest)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			begun <- struct{}{}
			select {
			case <-all:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			tick := time.NewTicker(200 * time.Millisecond)
			defer tick.Stop()
			for range reads {
				if _, err := io.CopyN(io.Discard, resp.Body, 16<<10); err != nil {
					return err
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(all)
		for range readers {
			select {
			case <-begun:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	return g.Wait()
}
