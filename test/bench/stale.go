// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/registry-cache/extension/test/bench/result"
	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// shape is an image of the usage document.
type shape struct {
	name, reference, host, server string
	layers                        []int64
	index                         bool // the reference refers to an index
	oldRounds                     int  // maximum number of rounds with the code of containerd 1.7
}

var shapes = []shape{
	{
		name: "alpine", reference: images.Alpine, host: "docker.io", server: "https://registry-1.docker.io",
		layers:    []int64{2_800_000},
		index:     true,
		oldRounds: 2,
	},
	{
		name: "ops-toolbelt", reference: images.OpsToolbelt, host: "eu.gcr.io", server: "https://eu.gcr.io",
		layers:    images.OpsToolbeltLayers(),
		oldRounds: 1,
	},
}

// staleLine sets bandwidth and latency so that direct pulls take as long as in the usage document, about 2 s and 10 s.
var staleLine = upstream.Shaping{Latency: 170 * time.Millisecond, BytesPerSecond: 27 << 20}

// stalePulls measures pulls in each state of the cache: with the containerd of the node, and in fewer rounds with the
// code of containerd 1.7, which ignores dial_timeout.
func stalePulls(ctx context.Context, b *bench) error {
	return b.withShoot(ctx, ours, func(s *kindShoot) error {
		other, err := s.onWorker(ctx, 1)
		if err != nil {
			return err
		}
		old, err := b.containerd17Pull(ctx, s, other)
		if err != nil {
			return err
		}
		daemon, err := s.daemonPull(ctx)
		if err != nil {
			return err
		}
		if err := s.tb.Upstream.Shape(ctx, staleLine); err != nil {
			return err
		}
		measured, pulls := shapes, []nodePull{daemon, old}
		if b.quick {
			measured, pulls = shapes[:1], pulls[:1]
		} else if err := b.pullForMinutes(ctx, s, other, daemon, old); err != nil {
			return err
		}
		for _, by := range pulls {
			b.results.Host.Containerd = append(b.results.Host.Containerd, by.version)
		}
		for _, shape := range measured {
			for _, by := range pulls {
				rounds := b.rounds
				if by.ignoresDialTimeout {
					rounds = min(rounds, shape.oldRounds)
				}
				for range rounds {
					if err := b.staleRound(ctx, s, shape, by, statesOf(by)); err != nil {
						return fmt.Errorf("%s/%s: %w", by.name, shape.name, err)
					}
				}
			}
		}
		return nil
	})
}

// pullForMinutes measures the states in which a pull takes minutes: the configuration of the usage document, and
// dial_timeout if the client ignores it. The duration consists of timeouts of 30 s, and their number varies by one or
// two. Each pull is therefore measured once, and all of them run concurrently. Only pulls of one containerd block each
// other, because it limits its downloads.
func (b *bench) pullForMinutes(ctx context.Context, s, other *kindShoot, daemon, old nodePull) error {
	type minutes struct {
		by    nodePull
		shape shape
		state string
		took  time.Duration
	}
	alpine, ops := shapes[0], shapes[1]
	onNodes := []struct {
		node  *kindShoot
		hosts []staleHost
		pulls []minutes
	}{
		{s, []staleHost{{alpine, ""}}, []minutes{{by: daemon, shape: alpine, state: result.StaleDocument}, {by: old, shape: alpine, state: result.StaleDocument}}},
		{other, []staleHost{{ops, ""}, {alpine, dialTimeout}}, []minutes{{by: daemon, shape: ops, state: result.StaleDocument}, {by: old, shape: alpine, state: result.StaleDialTimeout}}},
	}
	all, allCtx := errgroup.WithContext(ctx)
	for _, on := range onNodes {
		all.Go(func() error {
			return on.node.withStaleHosts(allCtx, on.hosts, func() error {
				g, ctx := errgroup.WithContext(allCtx)
				for i := range on.pulls {
					p := &on.pulls[i]
					g.Go(func() (err error) {
						if p.took, err = p.by.measured(ctx, on.node, p.shape.reference, nil); err != nil {
							return fmt.Errorf("%s/%s: %s: %w", p.by.name, p.shape.name, p.state, err)
						}
						return nil
					})
				}
				return g.Wait()
			})
		})
	}
	if err := all.Wait(); err != nil {
		return err
	}
	for _, on := range onNodes {
		for _, p := range on.pulls {
			b.results.Add(p.by.name+"/"+p.shape.name, p.state, "s", p.took.Seconds())
		}
	}
	return s.waitForMirrors(ctx)
}

// state creates a state of the cache, measures pulls in it, and reverts it.
type state func(ctx context.Context, s *kindShoot, shape shape, measure measure) error

// measure measures a pull of reference after prepare and event, and records it for the state.
type measure func(state, reference string, event func() error) error

// statesOf returns the states of a round. Each starts and ends with healthy caches that the node uses.
func statesOf(by nodePull) []state {
	states := []state{healthyState, directState, unitState, pinnedState}
	if !by.ignoresDialTimeout {
		states = append(states, dialTimeoutState)
	}
	return states
}

func (b *bench) staleRound(ctx context.Context, s *kindShoot, shape shape, by nodePull, states []state) error {
	measure := func(state, reference string, event func() error) error {
		took, err := by.measured(ctx, s, reference, event)
		if err != nil {
			return fmt.Errorf("%s: %w", state, err)
		}
		b.results.Add(by.name+"/"+shape.name, state, "s", took.Seconds())
		return nil
	}
	for _, state := range states {
		if err := errors.Join(state(ctx, s, shape, measure), s.waitForMirrors(ctx)); err != nil {
			return err
		}
	}
	return nil
}

func healthyState(ctx context.Context, s *kindShoot, shape shape, measure measure) error {
	reference := fmt.Sprintf("%s/bench/%s:%d", shape.host, shape.name, time.Now().UnixNano())
	spec := images.Spec{Seed: uint64(time.Now().UnixNano()), LayerSizes: shape.layers}
	if shape.index {
		spec.Platforms = []string{"linux/amd64", "linux/arm64"}
	}
	if _, err := s.tb.Upstream.Generate(ctx, reference, spec); err != nil {
		return err
	}
	mark, err := pull.Mark(ctx, s.tb.Upstream)
	if err != nil {
		return err
	}
	if err := errors.Join(measure(result.Cold, reference, nil), measure(result.Warm, reference, nil)); err != nil {
		return err
	}
	requests, err := s.tb.Upstream.Requests(ctx, mark)
	if err != nil {
		return err
	}
	// The cache must have fetched each blob once. Otherwise these pulls were not the intended ones.
	blobs := map[string]int{}
	for _, request := range requests {
		if request.Kind == upstream.Blob && request.Method == "GET" {
			blobs[request.Digest]++
		}
	}
	// The config, and for an index also blobs of other platforms, count in addition.
	if len(blobs) <= len(shape.layers) {
		return fmt.Errorf("two pulls through the cache transferred %d blobs, want more than %d", len(blobs), len(shape.layers))
	}
	for digest, times := range blobs {
		if times != 1 {
			return fmt.Errorf("two pulls through the cache transferred %s %d times", digest, times)
		}
	}
	return nil
}

func directState(ctx context.Context, s *kindShoot, shape shape, measure measure) error {
	return s.withoutUnit(ctx, func() error { return measure(direct, shape.reference, nil) })
}

// dialTimeout is the line of hosts.toml that limits the connection time of containerd.
const dialTimeout = "  dial_timeout = \"200ms\"\n"

func dialTimeoutState(ctx context.Context, s *kindShoot, of shape, measure measure) error {
	return s.withStaleHosts(ctx, []staleHost{{of, dialTimeout}}, func() error { return measure(result.StaleDialTimeout, of.reference, nil) })
}

// unitState deletes the Service permanently: the resource manager, which would recreate it, is stopped.
func unitState(ctx context.Context, s *kindShoot, shape shape, measure measure) error {
	err := s.scaleResourceManager(ctx, 0)
	if err == nil {
		err = measure(result.StaleUnitFirst, shape.reference, func() error { return s.deleteService(ctx, shape.host) })
	}
	if err == nil {
		err = pull.WaitForNoMirror(ctx, s.node, shape.host)
	}
	if err == nil {
		err = measure(result.StaleUnitLater, shape.reference, nil)
	}
	return errors.Join(err, s.scaleResourceManager(context.WithoutCancel(ctx), 1))
}

func pinnedState(ctx context.Context, s *kindShoot, shape shape, measure measure) error {
	return measure(result.DeletedPinned, shape.reference, func() error { return s.deleteService(ctx, shape.host) })
}

// withoutUnit calls f while the unit is stopped. The unit withdraws all caches when it stops.
func (s *kindShoot) withoutUnit(ctx context.Context, f func() error) error {
	if err := s.systemctl(ctx, "stop"); err != nil {
		return err
	}
	return errors.Join(f(), s.systemctl(context.WithoutCancel(ctx), "start"))
}

// staleHost is a hosts.toml for the upstream of the shape with a cache at an unassigned address. option is an additional
// line.
type staleHost struct {
	shape  shape
	option string
}

// withStaleHosts calls f while the node has only the given caches.
func (s *kindShoot) withStaleHosts(ctx context.Context, hosts []staleHost, f func() error) error {
	return s.withoutUnit(ctx, func() (err error) {
		defer func() {
			for _, host := range hosts {
				err = errors.Join(err, os.RemoveAll(filepath.Dir(s.hostsFile(host.shape.host))))
			}
		}()
		for _, host := range hosts {
			address, err := s.staleAddress(ctx)
			if err != nil {
				return err
			}
			content := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\",\"resolve\"]\n%s", host.shape.server, "http://"+net.JoinHostPort(address, "5000"), host.option)
			file := s.hostsFile(host.shape.host)
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o644)); err != nil {
				return err
			}
		}
		return f()
	})
}

// staleAddress returns the address of a deleted Service. The nodes drop packets to it.
func (s *kindShoot) staleAddress(ctx context.Context) (string, error) {
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, GenerateName: "bench-"},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 5000}}},
	}
	if err := s.kube.Create(ctx, service); err != nil {
		return "", err
	}
	return service.Spec.ClusterIP, s.kube.Delete(ctx, service)
}
