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

// component is an image of a system component of each node. Its size, in bytes, is similar to that of the real image.
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

// startLine is the bandwidth to the upstream that all nodes share.
var startLine = upstream.Shaping{Latency: 50 * time.Millisecond, BytesPerSecond: 32 << 20}

// nodeStart measures the time until all starting nodes have the images of all system components: without caches, with
// empty caches, and with caches that contain all images. A starting node has no cache in its containerd configuration.
// The pulls start after the unit, and the duration includes the start of the unit. Each node pulls one image after the
// other, like the kubelet by default.
func nodeStart(ctx context.Context, b *bench) error {
	pulled, engines := components, []string{ours, stock}
	if b.quick {
		// The installation with the stock registry, and back, takes minutes.
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

// startRound measures with new images, which no node and no cache has.
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
		// The content of the caches has no effect here.
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

// startNodes removes the images and the caches from the nodes, pulls the images on all nodes concurrently, and returns
// the duration of the slowest node and the bytes sent by the upstream. With withCaches, the units start before the pulls;
// otherwise after them.
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

// fill fills the caches with all images. Pulls of nodes before the use of the caches do not fill them.
func (s *kindShoot) fill(ctx context.Context, references []string) error {
	if err := s.waitForMirrors(ctx); err != nil {
		return err
	}
	if err := pull.Remove(ctx, s.node, references...); err != nil {
		return err
	}
	return pullAll(ctx, s.node, references)
}

// offer creates new images of the components in the upstream, and returns their references and their total size in bytes.
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

// onEach calls f for all nodes concurrently.
func onEach(nodes []kindcluster.Node, f func(kindcluster.Node) error) error {
	var g errgroup.Group
	for _, node := range nodes {
		g.Go(func() error { return f(node) })
	}
	return g.Wait()
}
