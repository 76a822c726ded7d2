// SPDX-License-Identifier: Apache-2.0

// Package testbed brings up and takes down the kind-based Shoot: the cluster, the upstream registry, volumes, Gardener's
// own components and the extension. Its parts are packages of their own; this one knows their order.
package testbed

import (
	"context"
	"errors"
	"os"

	_ "github.com/registry-cache/extension/pkg/logfilter" // removes a log line of a dependency
	"github.com/registry-cache/extension/test/testbed/gardener"
	"github.com/registry-cache/extension/test/testbed/host"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/nodeimage"
	"github.com/registry-cache/extension/test/testbed/product"
	"github.com/registry-cache/extension/test/testbed/shoot"
	"github.com/registry-cache/extension/test/testbed/upstream"
	"github.com/registry-cache/extension/test/testbed/upstream/container"
	"github.com/registry-cache/extension/test/testbed/volumes"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// Options are the choices of a testbed.
type Options struct {
	// Workers is the number of worker nodes; zero means two.
	Workers int
	// NodeImage is used instead of the published or self-built node image, if not empty.
	NodeImage string
}

// Testbed is a running testbed.
type Testbed struct {
	// Cluster is garden, seed and Shoot at once.
	Cluster *kindcluster.Cluster
	// Upstream is the registry that stands for docker.io and the others.
	Upstream *upstream.Client
}

// Up makes the testbed, or finds it and repairs what is missing. It may be called again after it was interrupted at
// any point.
func Up(ctx context.Context, progress *workspace.Progress, o Options) (*Testbed, error) {
	engine, err := host.Prepare(ctx, progress)
	if err != nil {
		return nil, err
	}
	image, err := nodeimage.Ensure(ctx, engine, progress, nodeimage.Options{Override: o.NodeImage})
	if err != nil {
		return nil, err
	}
	options, err := clusterOptions()
	if err != nil {
		return nil, err
	}
	options.Workers, options.NodeImage = o.Workers, image
	cluster, err := kindcluster.Ensure(ctx, engine, progress, options)
	if err != nil {
		return nil, err
	}
	client, err := container.Ensure(ctx, cluster, progress)
	if err != nil {
		return nil, err
	}
	tb := &Testbed{Cluster: cluster, Upstream: client}
	if err := tb.Equip(ctx, progress); err != nil {
		return nil, err
	}
	return tb, nil
}

// Equip puts on the nodes of the cluster, and into its API, what Up does: volumes, Gardener's components, and the product
// with its default options. It changes only what is missing or different: a node that has joined gets all of it, once it
// resolves and trusts the upstream (container.Ensure).
func (t *Testbed) Equip(ctx context.Context, progress *workspace.Progress) error {
	if err := volumes.Install(ctx, t.Cluster, progress); err != nil {
		return err
	}
	if err := gardener.Install(ctx, t.Cluster, progress); err != nil {
		return err
	}
	roots, err := container.CACertificate()
	if err != nil {
		return err
	}
	if err := product.Install(ctx, t.Cluster, progress, product.Options{CABundle: roots}); err != nil {
		return err
	}
	return progress.Step("Waiting until the admission is reached", func() error {
		return shoot.WaitForAdmission(ctx, t.Cluster)
	})
}

// Open returns the testbed that is running; an error that says "make kind-up" where there is none.
func Open(ctx context.Context) (*Testbed, error) {
	engine, err := host.Find(ctx)
	if errors.Is(err, host.ErrNoEngine) {
		return nil, errors.Join(err, errors.New(`"make kind-up" installs one and makes the cluster`))
	}
	if err != nil {
		return nil, err
	}
	options, err := clusterOptions()
	if err != nil {
		return nil, err
	}
	cluster, err := kindcluster.Open(ctx, engine, options)
	if err != nil {
		return nil, errors.Join(err, errors.New(`"make kind-up" makes the cluster`))
	}
	client, err := container.Open(ctx, engine)
	if err != nil {
		return nil, errors.Join(err, errors.New(`"make kind-up" starts the upstream registry`))
	}
	return &Testbed{Cluster: cluster, Upstream: client}, nil
}

// Down removes the cluster, the upstream and everything that belongs to them. What is expensive to build stays.
func Down(ctx context.Context, progress *workspace.Progress) error {
	engine, err := host.Find(ctx)
	if errors.Is(err, host.ErrNoEngine) {
		return workspace.Remove()
	}
	if err != nil {
		return err
	}
	options, err := clusterOptions()
	if err != nil {
		return err
	}
	// The upstream goes first: the node network can only be removed when nothing is attached to it.
	if err := container.Delete(ctx, engine); err != nil {
		return err
	}
	if err := kindcluster.Delete(ctx, engine, progress, options); err != nil {
		return err
	}
	if err := volumes.CollectOrphans(ctx, progress); err != nil {
		return err
	}
	return workspace.Remove()
}

// Clean is Down, and removes what was built: the node image, and the cache folder.
func Clean(ctx context.Context, progress *workspace.Progress) error {
	if err := Down(ctx, progress); err != nil {
		return err
	}
	engine, err := host.Find(ctx)
	if err == nil {
		err = nodeimage.Remove(ctx, engine)
	}
	if err != nil && !errors.Is(err, host.ErrNoEngine) {
		return err
	}
	cache, err := workspace.CacheDir()
	if err != nil {
		return err
	}
	return os.RemoveAll(cache)
}

func clusterOptions() (kindcluster.Options, error) {
	kubeconfig, err := workspace.Kubeconfig()
	return kindcluster.Options{Kubeconfig: kubeconfig}, err
}
