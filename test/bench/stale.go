package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/registry-cache/extension/test/bench/result"
	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// shape is an image of the user's document, and the upstream that makes a direct pull take as long as it says.
type shape struct {
	name, reference, host, server string
	layers                        []int64
	index                         bool // the reference names one
	shaping                       upstream.Shaping
}

var shapes = []shape{
	{
		name: "alpine", reference: images.Alpine, host: "docker.io", server: "https://registry-1.docker.io",
		layers:  []int64{2_800_000},
		index:   true,
		shaping: upstream.Shaping{Latency: 350 * time.Millisecond, BytesPerSecond: 32 << 20},
	},
	{
		name: "ops-toolbelt", reference: images.OpsToolbelt, host: "eu.gcr.io", server: "https://eu.gcr.io",
		layers:  images.OpsToolbeltLayers(),
		shaping: upstream.Shaping{Latency: 350 * time.Millisecond, BytesPerSecond: 32 << 20},
	},
}

// stalePulls measures pulls in each state of the world, by the node's containerd, and by the code of containerd 1.7, which
// ignores dial_timeout.
func stalePulls(ctx context.Context, b *bench) error {
	return b.withShoot(ctx, ours, func(s *kindShoot) error {
		old, err := s.installContainerd17(ctx, filepath.Join(b.dir, "programs"))
		if err != nil {
			return err
		}
		daemon, err := s.daemonPull(ctx)
		if err != nil {
			return err
		}
		measured, pulls := shapes, []nodePull{daemon, old}
		if b.quick {
			measured, pulls = shapes[:1], pulls[:1]
		}
		for _, by := range pulls {
			b.results.Host.Containerd = append(b.results.Host.Containerd, by.version)
		}
		for _, shape := range measured {
			if err := s.tb.Upstream.Shape(ctx, shape.shaping); err != nil {
				return err
			}
			for _, by := range pulls {
				for round := range b.rounds {
					long := round == 0 && !b.quick
					if err := b.staleRound(ctx, s, shape, by, statesOf(by, long, shape.name == shapes[0].name)); err != nil {
						return fmt.Errorf("%s/%s: %w", by.name, shape.name, err)
					}
				}
			}
		}
		return nil
	})
}

// state makes a state of the world, measures pulls in it, and unmakes it.
type state func(ctx context.Context, s *kindShoot, shape shape, measure measure) error

// measure times a pull of reference after prepare and event, and records it for the state.
type measure func(state, reference string, event func() error) error

// statesOf are the states of a round, each of which begins and ends with healthy caches in use on the node. Those in which a
// pull takes minutes are there if long says so: they are made of timeouts, and always take the same time. Where dial_timeout
// is ignored, which makes two of them, they are there for the small image only.
func statesOf(by nodePull, long, small bool) []state {
	var states []state
	if long && (small || !by.ignoresDialTimeout) {
		states = append(states, documentState)
	}
	if !by.ignoresDialTimeout || long && small {
		states = append(states, dialTimeoutState)
	}
	return append(states, healthyState, directState, unitState, pinnedState)
}

func (b *bench) staleRound(ctx context.Context, s *kindShoot, shape shape, by nodePull, states []state) error {
	measure := func(state, reference string, event func() error) error {
		if err := by.prepare(ctx, s, reference); err != nil {
			return err
		}
		if event != nil {
			if err := event(); err != nil {
				return err
			}
		}
		took, err := by.pull(ctx, s, reference)
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
	// Each blob once, all by the cache: or else these were other pulls than they are called.
	blobs := map[string]int{}
	for _, request := range requests {
		if request.Kind == upstream.Blob && request.Method == "GET" {
			blobs[request.Digest]++
		}
	}
	// The configuration as well, and with an index those of other platforms.
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

func documentState(ctx context.Context, s *kindShoot, shape shape, measure measure) error {
	return s.withStaleHosts(ctx, shape, "", func() error { return measure(result.StaleDocument, shape.reference, nil) })
}

func dialTimeoutState(ctx context.Context, s *kindShoot, shape shape, measure measure) error {
	return s.withStaleHosts(ctx, shape, "  dial_timeout = \"200ms\"\n", func() error { return measure(result.StaleDialTimeout, shape.reference, nil) })
}

// unitState takes the Service away for good: nobody brings it back while the resource manager does not run.
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

// withoutUnit calls f while the unit is stopped, which takes all caches out of containerd's configuration.
func (s *kindShoot) withoutUnit(ctx context.Context, f func() error) error {
	if err := s.systemctl(ctx, "stop"); err != nil {
		return err
	}
	return errors.Join(f(), s.systemctl(context.WithoutCancel(ctx), "start"))
}

// withStaleHosts calls f while the node has a hosts.toml with a cache at an address that nobody has.
func (s *kindShoot) withStaleHosts(ctx context.Context, shape shape, option string, f func() error) error {
	return s.withoutUnit(ctx, func() (err error) {
		address, err := s.staleAddress(ctx)
		if err != nil {
			return err
		}
		content := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\",\"resolve\"]\n%s", shape.server, "http://"+net.JoinHostPort(address, "5000"), option)
		file := s.hostsFile(shape.host)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o644)); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(filepath.Dir(file))) }()
		return f()
	})
}

// staleAddress is the address of a Service that has been deleted. The cluster drops packets to it inside of its nodes.
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
