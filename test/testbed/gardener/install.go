// SPDX-License-Identifier: Apache-2.0

package gardener

import (
	"context"
	"fmt"
	"strings"

	"k8s.io/client-go/discovery"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed/gardenlet"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// Install builds the components if that was not done before, and installs or repairs them. A second call changes
// nothing but what is missing or different; a call after a node was added gives that node its agent. It returns when
// all of them work, or an error that says which does not.
func Install(ctx context.Context, cluster *kindcluster.Cluster, progress *workspace.Progress) error {
	root, err := workspace.Root()
	if err != nil {
		return err
	}
	cache, err := workspace.CacheDir()
	if err != nil {
		return err
	}
	restConfig, err := cluster.RESTConfig()
	if err != nil {
		return err
	}
	c, err := client.New(restConfig, client.Options{Scheme: gardenlet.Scheme()})
	if err != nil {
		return fmt.Errorf("connecting to cluster %s: %w", cluster.Name(), err)
	}
	discovered, err := discovery.NewDiscoveryClientForConfig(restConfig)
	if err != nil {
		return fmt.Errorf("connecting to cluster %s: %w", cluster.Name(), err)
	}
	kubernetesVersion, err := discovered.ServerVersion()
	if err != nil {
		return fmt.Errorf("asking cluster %s for its version: %w", cluster.Name(), err)
	}

	src, err := locate(ctx, root)
	if err != nil {
		return err
	}
	built, err := build(ctx, progress, root, cache, src)
	if err != nil {
		return err
	}
	if err := progress.Step("Applying Gardener's CRDs", func() error { return applyCRDs(ctx, c, src.Dir) }); err != nil {
		return err
	}
	if err := progress.Step("Starting gardener-resource-manager "+src.Version, func() error {
		if err := cluster.LoadArchive(ctx, built.resourceManager.archive); err != nil {
			return err
		}
		return startResourceManager(ctx, c, built.resourceManager.reference)
	}); err != nil {
		return err
	}
	if err := progress.Step("Starting gardener-apiserver "+src.Version, func() error {
		if err := cluster.LoadArchive(ctx, built.apiServer.archive); err != nil {
			return err
		}
		return startAPIServer(ctx, c, built.apiServer.reference)
	}); err != nil {
		return err
	}
	if err := progress.Step("Writing what a Shoot refers to", func() error {
		return applyLandscape(ctx, c, strings.TrimPrefix(kubernetesVersion.GitVersion, "v"))
	}); err != nil {
		return err
	}
	if err := progress.Step("Starting gardener-node-agent "+src.Version+" on every node", func() error {
		return startNodeAgents(ctx, c, cluster, built, kubernetesVersion.GitVersion)
	}); err != nil {
		return err
	}
	return progress.Step("Starting the gardenlet's stand-in", func() error {
		return startGardenlet(ctx, c, cluster, root, cache, src.Version)
	})
}
