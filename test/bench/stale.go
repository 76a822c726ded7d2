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

// shape is an image of the user's document.
type shape struct {
	name, reference, host, server string
	layers                        []int64
	index                         bool // the reference names one
}

var shapes = []shape{
	{
		name: "alpine", reference: images.Alpine, host: "docker.io", server: "https://registry-1.docker.io",
		layers: []int64{2_800_000},
		index:  true,
	},
	{
		name: "ops-toolbelt", reference: images.OpsToolbelt, host: "eu.gcr.io", server: "https://eu.gcr.io",
		layers: images.OpsToolbeltLayers(),
	},
}

// staleLine is the line to an upstream that makes direct pulls take as long as the document says.
var staleLine = upstream.Shaping{Latency: 350 * time.Millisecond, BytesPerSecond: 32 << 20}

// stalePulls measures pulls in each state of the world, by the node's containerd, and by the code of containerd 1.7, which
// ignores dial_timeout, in fewer rounds.
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
		if err := s.tb.Upstream.Shape(ctx, staleLine); err != nil {
			return err
		}
		measured, pulls := shapes, []nodePull{daemon, old}
		if b.quick {
			measured, pulls = shapes[:1], pulls[:1]
		} else if err := b.pullForMinutes(ctx, s, daemon, old); err != nil {
			return err
		}
		for _, by := range pulls {
			b.results.Host.Containerd = append(b.results.Host.Containerd, by.version)
		}
		for _, shape := range measured {
			for _, by := range pulls {
				rounds := b.rounds
				if by.ignoresDialTimeout {
					rounds = min(rounds, gridRounds)
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

// pullForMinutes measures the states in which a pull takes minutes: with the document's configuration, and also with
// dial_timeout where that is ignored. They are made of timeouts and always take the same time, so each pull is made once, and
// all of a state at once.
func (b *bench) pullForMinutes(ctx context.Context, s *kindShoot, daemon, old nodePull) error {
	type pulled struct {
		by    nodePull
		shape shape
	}
	for _, state := range []struct {
		name, option string
		pulls        []pulled
	}{
		{result.StaleDocument, "", []pulled{{daemon, shapes[0]}, {daemon, shapes[1]}, {old, shapes[0]}}},
		{result.StaleDialTimeout, dialTimeout, []pulled{{old, shapes[0]}}},
	} {
		took := make([]time.Duration, len(state.pulls))
		err := s.withStaleHosts(ctx, shapes, state.option, func() error {
			g, ctx := errgroup.WithContext(ctx)
			for i, p := range state.pulls {
				g.Go(func() (err error) {
					if took[i], err = p.by.measured(ctx, s, p.shape.reference, nil); err != nil {
						return fmt.Errorf("%s/%s: %s: %w", p.by.name, p.shape.name, state.name, err)
					}
					return nil
				})
			}
			return g.Wait()
		})
		if err := errors.Join(err, s.waitForMirrors(ctx)); err != nil {
			return err
		}
		for i, p := range state.pulls {
			b.results.Add(p.by.name+"/"+p.shape.name, state.name, "s", took[i].Seconds())
		}
	}
	return nil
}

// state makes a state of the world, measures pulls in it, and unmakes it.
type state func(ctx context.Context, s *kindShoot, shape shape, measure measure) error

// measure times a pull of reference after prepare and event, and records it for the state.
type measure func(state, reference string, event func() error) error

// statesOf are the states of a round, each of which begins and ends with healthy caches in use on the node.
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

// dialTimeout is the line of a hosts.toml that has containerd give up an address that does not answer.
const dialTimeout = "  dial_timeout = \"200ms\"\n"

func dialTimeoutState(ctx context.Context, s *kindShoot, of shape, measure measure) error {
	return s.withStaleHosts(ctx, []shape{of}, dialTimeout, func() error { return measure(result.StaleDialTimeout, of.reference, nil) })
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

// withStaleHosts calls f while the node has a hosts.toml for the upstream of each shape, with a cache at an address that
// nobody has.
func (s *kindShoot) withStaleHosts(ctx context.Context, shapes []shape, option string, f func() error) error {
	return s.withoutUnit(ctx, func() (err error) {
		defer func() {
			for _, shape := range shapes {
				err = errors.Join(err, os.RemoveAll(filepath.Dir(s.hostsFile(shape.host))))
			}
		}()
		for _, shape := range shapes {
			address, err := s.staleAddress(ctx)
			if err != nil {
				return err
			}
			content := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\",\"resolve\"]\n%s", shape.server, "http://"+net.JoinHostPort(address, "5000"), option)
			file := s.hostsFile(shape.host)
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o644)); err != nil {
				return err
			}
		}
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
