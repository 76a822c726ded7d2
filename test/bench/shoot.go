// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	kubeclient "sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/product"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/shoot"
	"github.com/registry-cache/extension/test/testbed/upstream"
	"github.com/registry-cache/extension/test/testbed/upstream/container"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// shootManifest has three caches: the target for the cost of the unit is defined for three. Two of them serve the images
// of the usage document.
const shootManifest = `
apiVersion: core.gardener.cloud/v1beta1
kind: Shoot
metadata:
  name: bench
  namespace: garden-dev
spec:
  extensions:
  - type: registry-cache
    providerConfig:
      apiVersion: registry.extensions.gardener.cloud/v1alpha1
      kind: RegistryConfig
      caches:
      - upstream: docker.io
        size: 4Gi
      - upstream: eu.gcr.io
        size: 8Gi
      - upstream: quay.io
        size: 1Gi
`

// unit is the systemd unit of the nodes.
const unit = "configure-containerd-registries.service"

// kindShoot is a Shoot with caches on the kind cluster.
type kindShoot struct {
	tb     *testbed.Testbed
	kube   kubeclient.Client
	caches map[string]string // ClusterIP by upstream
	// node is the worker that pulls, root its file system as a path on this machine.
	node kindcluster.Node
	pid  int
	root string
}

// withShoot creates the Shoot with caches of an engine, ours or stock, and calls f when the nodes use them. It creates
// the kind cluster if necessary. Afterwards, the cluster has the default configuration of the product.
func (b *bench) withShoot(ctx context.Context, engine string, f func(*kindShoot) error) (err error) {
	progress := workspace.NewProgress(os.Stderr)
	s := &kindShoot{caches: map[string]string{}}
	if b.testbed == nil {
		if b.testbed, err = testbed.Up(ctx, progress, testbed.Options{NodeImage: os.Getenv("NODE_IMAGE")}); err != nil {
			return err
		}
	}
	s.tb = b.testbed
	config, err := s.tb.Cluster.RESTConfig()
	if err != nil {
		return err
	}
	if s.kube, err = kubeclient.New(config, kubeclient.Options{Scheme: clientscheme.Scheme}); err != nil {
		return err
	}
	if engine == stock {
		b.testbed = nil // until the default configuration is restored
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
			defer cancel()
			back := s.install(ctx, progress, "")
			if back == nil {
				b.testbed = s.tb
			}
			err = errors.Join(err, back)
		}()
		if err := s.install(ctx, progress, product.Distribution); err != nil {
			return err
		}
	}
	defer func() {
		// also after an interrupt
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
		defer cancel()
		err = errors.Join(err, s.tb.Upstream.Shape(ctx, upstream.Shaping{}), shoot.Delete(ctx, s.tb.Cluster, progress, []byte(shootManifest)))
	}()
	result, err := shoot.Apply(ctx, s.tb.Cluster, progress, []byte(shootManifest))
	if err != nil {
		return err
	}
	for _, cache := range result.Status.Caches {
		s.caches[cache.Upstream] = cache.ClusterIP
	}
	first, err := s.onWorker(ctx, 0)
	if err != nil {
		return err
	}
	if err := first.waitForMirrors(ctx); err != nil {
		return err
	}
	return f(first)
}

// install installs the product with an engine; empty means the default.
func (s *kindShoot) install(ctx context.Context, progress *workspace.Progress, engine string) error {
	roots, err := container.CACertificate()
	if err != nil {
		return err
	}
	return product.Install(ctx, s.tb.Cluster, progress, product.Options{CABundle: roots, Engine: engine})
}

// onWorker returns the Shoot with the given worker (0 or 1) as the pulling node. The pods of the caches may run on it:
// the network between containers on one machine has no measurable effect.
func (s *kindShoot) onWorker(ctx context.Context, index int) (*kindShoot, error) {
	nodes, err := s.tb.Cluster.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	workers := slices.DeleteFunc(nodes, func(node kindcluster.Node) bool { return node.Role != kindcluster.Worker })
	if index >= len(workers) {
		return nil, fmt.Errorf("the cluster has %d workers, %d are needed: run \"make kind-up\"", len(workers), index+1)
	}
	on := *s
	on.node = workers[index]
	out, err := s.tb.Cluster.Engine().Run(ctx, nil, "inspect", "--format", "{{.State.Pid}}", on.node.Name)
	if err != nil {
		return nil, err
	}
	if on.pid, err = strconv.Atoi(strings.TrimSpace(string(out))); err != nil {
		return nil, fmt.Errorf("reading the PID of %s: %w", on.node.Name, err)
	}
	on.root = fmt.Sprintf("/proc/%d/root", on.pid)
	return &on, nil
}

func (s *kindShoot) waitForMirrors(ctx context.Context) error {
	for upstreamHost := range s.caches {
		if err := pull.WaitForMirror(ctx, s.node, upstreamHost); err != nil {
			return err
		}
	}
	return nil
}

// hostsFile returns the path of the hosts.toml of an upstream on the node, as a path on this machine.
func (s *kindShoot) hostsFile(upstreamHost string) string {
	return filepath.Join(s.root, pull.HostsDir, upstreamHost, "hosts.toml")
}

// systemctl runs a systemctl command for the unit on the node.
func (s *kindShoot) systemctl(ctx context.Context, order string) error {
	_, err := s.node.Run(ctx, nil, "systemctl", order, unit)
	return err
}

// deleteService deletes the Service of a cache, like a user.
func (s *kindShoot) deleteService(ctx context.Context, upstreamHost string) error {
	services := &corev1.ServiceList{}
	if err := s.kube.List(ctx, services, kubeclient.InNamespace("kube-system"), kubeclient.MatchingLabels{"upstream-host": upstreamHost}); err != nil {
		return err
	}
	if len(services.Items) != 1 {
		return fmt.Errorf("%s has %d Services, want 1", upstreamHost, len(services.Items))
	}
	return s.kube.Delete(ctx, &services.Items[0])
}

// scaleResourceManager scales the resource manager, and waits until its pods are started or stopped.
func (s *kindShoot) scaleResourceManager(ctx context.Context, replicas int32) error {
	key := kubeclient.ObjectKey{Namespace: "garden", Name: "gardener-resource-manager"}
	deployment := &appsv1.Deployment{}
	if err := s.kube.Get(ctx, key, deployment); err != nil {
		return err
	}
	patch := kubeclient.MergeFrom(deployment.DeepCopy())
	deployment.Spec.Replicas = new(replicas)
	if err := s.kube.Patch(ctx, deployment, patch); err != nil {
		return err
	}
	return poll(ctx, time.Minute, func() error {
		pods := &corev1.PodList{}
		if err := s.kube.List(ctx, pods, kubeclient.InNamespace(key.Namespace), kubeclient.MatchingLabels(deployment.Spec.Selector.MatchLabels)); err != nil {
			return err
		}
		if err := s.kube.Get(ctx, key, deployment); err != nil {
			return err
		}
		if len(pods.Items) != int(replicas) || deployment.Status.ReadyReplicas != replicas {
			return fmt.Errorf("%s has %d pods, %d of them ready, want %d", key, len(pods.Items), deployment.Status.ReadyReplicas, replicas)
		}
		return nil
	})
}
