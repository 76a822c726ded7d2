// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/registry-cache/extension/test/testbed/upstream"
)

// trace is a sequence of pulls over several accelerated days. A Zipf distribution selects the images. On each day, some
// images that were never pulled before become the most popular ones, like new versions.
type trace struct {
	images int
	pulls  int
	days   int
	day    time.Duration
	seed   uint64
}

const (
	// zipfExponent and zipfOffset are the parameters of rand.NewZipf. The first of 192 images gets about 10 % of the
	// pulls.
	zipfExponent, zipfOffset = 1.1, 2
	// overcommitment is the size of all images of a trace, divided by the size of the volume.
	overcommitment = 3
)

// choices returns the numbers of the images in order of their pulls.
func (t trace) choices() []int {
	random := rand.New(rand.NewPCG(t.seed, 0))
	zipf := rand.NewZipf(random, zipfExponent, zipfOffset, uint64(t.images-1))
	all := make([]int, t.pulls)
	for k := range all {
		// During the whole trace, half of the images are new once.
		moved := k * t.days / t.pulls * t.images / (2 * t.days)
		all[k] = (int(zipf.Uint64()) + t.images - moved) % t.images
	}
	return all
}

// diskPressure replays a trace on a volume that has space for a third of its images, and counts the bytes served from the
// volume. The stock registry evicts by age only; this server evicts by last use and watermarks. In accelerated time, the
// TTL is one week and the trace takes two weeks.
func diskPressure(ctx context.Context, b *bench) error {
	t := trace{images: 192, pulls: 1400, days: 14, day: 3 * time.Second, seed: 1}
	if b.quick {
		t.images, t.pulls, t.day = 48, 280, 500*time.Millisecond
	}
	var images []image
	for range t.images {
		i, err := b.push(ctx, mebibyte)
		if err != nil {
			return err
		}
		images = append(images, i)
	}
	// One round, because it takes long and the trace is always the same.
	for _, name := range caches {
		if err := b.replay(ctx, name, t, images); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (b *bench) replay(ctx context.Context, name string, t trace, images []image) (err error) {
	root := filepath.Join(b.dir, "small-volume")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	size := int64(t.images) * mebibyte / overcommitment
	if err := syscall.Mount("tmpfs", root, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		return fmt.Errorf("mounting a volume of %d bytes: %w", size, err)
	}
	defer func() { err = errors.Join(err, syscall.Unmount(root, 0), os.Remove(root)) }()
	e, err := b.engine(ctx, name, engineOptions{Root: root, TTL: 7 * t.day, HighWatermark: 90, LowWatermark: 80})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	var wanted, hit int64
	failed := 0
	tick := time.NewTicker(t.day * time.Duration(t.days) / time.Duration(t.pulls))
	defer tick.Stop()
	for _, choice := range t.choices() {
		i := images[choice]
		if err := b.origin.admin.ResetRequests(ctx); err != nil {
			return err
		}
		pullErr := e.pullVerified(ctx, i)
		if pullErr != nil {
			failed++
		}
		requests, err := b.origin.admin.Requests(ctx, 0)
		if err != nil {
			return err
		}
		for _, blob := range i.blobs {
			wanted += blob.size
			fetched := slices.ContainsFunc(requests, func(r upstream.Request) bool { return r.Kind == upstream.Blob && r.Reference == blob.digest })
			if pullErr == nil && !fetched {
				hit += blob.size
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	series := fmt.Sprintf("disk/images=%d", t.images)
	b.results.Add(series, name, "hit-B/B", float64(hit)/float64(wanted))
	b.results.Add(series, name, "failed/req", float64(failed)/float64(t.pulls))
	// The stock registry does not shut down cleanly on a full volume.
	return e.kill()
}

// pullVerified is a pull by a new client that checks all digests.
func (e *engine) pullVerified(ctx context.Context, i image) error {
	c, err := newClient(e.url, e.ca)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.head(ctx, i); err != nil {
		return err
	}
	blobs, err := c.manifest(ctx, i.repository, i.digest)
	if err != nil {
		return err
	}
	for _, blob := range blobs {
		if err := c.fetch(ctx, i.repository, blob, true); err != nil {
			return err
		}
	}
	return nil
}
