// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/registry-cache/extension/test/bench/result"
	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// component is an image that every node of a Shoot runs, about as large as the real one, in bytes.
type component struct {
	name, host string
	layers     []int64
}

var components = []component{
	{"kube-proxy", "eu.gcr.io", []int64{2_000_000, 20_000_000, 13_000_000}},
	{"cni", "quay.io", []int64{30_000_000, 50_000_000}},
	{"node-local-dns", "eu.gcr.io", []int64{20_000_000, 10_000_000}},
	{"csi-driver", "eu.gcr.io", []int64{40_000_000, 20_000_000}},
	{"csi-registrar", "eu.gcr.io", []int64{12_000_000}},
	{"apiserver-proxy", "eu.gcr.io", []int64{25_000_000, 35_000_000}},
	{"node-exporter", "quay.io", []int64{12_000_000}},
	{"node-problem-detector", "eu.gcr.io", []int64{20_000_000}},
}

// startLine is the line to the upstream that all nodes share.
var startLine = upstream.Shaping{Latency: 50 * time.Millisecond, BytesPerSecond: 32 << 20}

// nodeStart measures how long nodes that become ready at once take until they have all images of what runs on every node:
// without caches, with caches that have none of them yet, and with caches that have all. A node that starts has no caches
// configured: its unit starts when it is ready, and its pulls when the unit has started, which counts. Each node pulls one
// image after the other, as its kubelet does by default.
func nodeStart(ctx context.Context, b *bench) error {
	pulled, engines := components, []string{ours, stock}
	if b.quick {
		// The product is installed twice more for the stock registry, which takes minutes.
		pulled, engines = components[4:7], []string{ours}
	}
	for _, engine := range engines {
		err := b.withShoot(ctx, engine, func(s *kindShoot) error {
			nodes, err := s.tb.Cluster.Nodes(ctx)
			if err != nil {
				return err
			}
			if err := s.tb.Upstream.Shape(ctx, startLine); err != nil {
				return err
			}
			for range min(b.rounds, gridRounds) {
				if err := b.startRound(ctx, s, engine, nodes, pulled); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", engine, err)
		}
	}
	return nil
}

// startRound measures with images that nobody has seen before, and that no node keeps.
func (b *bench) startRound(ctx context.Context, s *kindShoot, engine string, nodes []kindcluster.Node, components []component) (err error) {
	references, size, err := s.offer(ctx, components)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, onEach(nodes, func(node kindcluster.Node) error { return pull.Remove(context.WithoutCancel(ctx), node, references...) }))
	}()
	measure := func(by string, withCaches bool, states ...string) error {
		took, sent, err := s.startNodes(ctx, nodes, references, withCaches)
		if err != nil {
			return fmt.Errorf("%s: %w", states, err)
		}
		for _, state := range states {
			name := fmt.Sprintf("nodestart/nodes=%d/%s", len(nodes), state)
			b.results.Add(name, by, "s", took.Seconds())
			b.results.Add(name, by, "upstream-B/image-B", float64(sent)/float64(size))
		}
		return nil
	}
	if engine == ours {
		// What caches have makes no difference here.
		if err := measure(direct, false, result.Cold, result.Warm); err != nil {
			return err
		}
	}
	if err := measure(engine, true, result.Cold); err != nil {
		return err
	}
	if err := s.fill(ctx, references); err != nil {
		return fmt.Errorf("filling the caches: %w", err)
	}
	return measure(engine, true, result.Warm)
}

// startNodes takes the images and the caches away from the nodes, lets them pull the images, all nodes at once, and returns
// how long the last one took and what the upstream sent meanwhile, in bytes. The units start before the pulls if withCaches
// says so, and run afterwards in any case.
func (s *kindShoot) startNodes(ctx context.Context, nodes []kindcluster.Node, references []string, withCaches bool) (took time.Duration, sent int64, err error) {
	start := func(ctx context.Context, node kindcluster.Node) error {
		_, err := node.Run(ctx, nil, "systemctl", "start", unit)
		return err
	}
	defer func() {
		err = errors.Join(err, onEach(nodes, func(node kindcluster.Node) error { return start(context.WithoutCancel(ctx), node) }))
	}()
	if err := onEach(nodes, func(node kindcluster.Node) error {
		if _, err := node.Run(ctx, nil, "systemctl", "stop", unit); err != nil {
			return err
		}
		return pull.Remove(ctx, node, references...)
	}); err != nil {
		return 0, 0, err
	}
	mark, err := pull.Mark(ctx, s.tb.Upstream)
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	err = onEach(nodes, func(node kindcluster.Node) error {
		if withCaches {
			if err := start(ctx, node); err != nil {
				return err
			}
		}
		return pullAll(ctx, node, references)
	})
	took = time.Since(began)
	if err != nil {
		return 0, 0, err
	}
	requests, err := s.tb.Upstream.Requests(ctx, mark)
	for _, r := range requests {
		if r.Kind == upstream.Blob {
			sent += r.Bytes
		}
	}
	return took, sent, err
}

// fill lets the caches have all images: what nodes pull before they know the caches is not in them.
func (s *kindShoot) fill(ctx context.Context, references []string) error {
	if err := s.waitForMirrors(ctx); err != nil {
		return err
	}
	if err := pull.Remove(ctx, s.node, references...); err != nil {
		return err
	}
	return pullAll(ctx, s.node, references)
}

// offer makes the upstream offer new images of the components, and returns what they are called and their size, in bytes.
func (s *kindShoot) offer(ctx context.Context, components []component) (references []string, size int64, err error) {
	for i, c := range components {
		seed := time.Now().UnixNano()
		reference := fmt.Sprintf("%s/bench/%s:%d", c.host, c.name, seed)
		if _, err := s.tb.Upstream.Generate(ctx, reference, images.Spec{Seed: uint64(seed) + uint64(i), LayerSizes: c.layers}); err != nil {
			return nil, 0, err
		}
		references = append(references, reference)
		for _, layer := range c.layers {
			size += layer
		}
	}
	return references, size, nil
}

func pullAll(ctx context.Context, node kindcluster.Node, references []string) error {
	for _, reference := range references {
		if _, err := pull.Image(ctx, node, reference); err != nil {
			return err
		}
	}
	return nil
}

// onEach calls f for all nodes at once.
func onEach(nodes []kindcluster.Node, f func(kindcluster.Node) error) error {
	var g errgroup.Group
	for _, node := range nodes {
		g.Go(func() error { return f(node) })
	}
	return g.Wait()
}
