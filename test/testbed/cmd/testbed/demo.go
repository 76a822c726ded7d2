// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/registry-cache/extension/test/testbed"
	"github.com/registry-cache/extension/test/testbed/artifacts"
	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/shoot"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// summaryTimeout limits the requests for the state of the testbed after a failure.
const summaryTimeout = time.Minute

func demoCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "demo", Short: "From nothing to a pull served from the cache", Args: cobra.NoArgs}
	options := upOptions(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		progress := progress()
		tb, err := testbed.Up(cmd.Context(), progress, *options)
		if err != nil {
			return err
		}
		if err := demo(cmd.Context(), tb, progress); err != nil {
			summarize(cmd.Context(), tb)
			return err
		}
		return nil
	}
	return cmd
}

// summarize prints the state of the testbed after a failure, also if ctx has ended.
func summarize(ctx context.Context, tb *testbed.Testbed) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), summaryTimeout)
	defer cancel()
	artifacts.Summarize(ctx, tb.Cluster, os.Stderr)
}

// demo makes a Shoot with empty caches, pulls one image on two nodes and prints where each byte came from. It fails if
// the second pull was not served from the cache: a demo that shows something else has not shown it.
func demo(ctx context.Context, tb *testbed.Testbed, progress *workspace.Progress) error {
	root, err := workspace.Root()
	if err != nil {
		return err
	}
	manifest, err := readManifest(filepath.Join(root, "example", "shoot.yaml"))
	if err != nil {
		return err
	}
	// What an earlier demo cached would be served without any transfer; the first pull is to show one.
	if err := shoot.Delete(ctx, tb.Cluster, progress, manifest); err != nil {
		return err
	}
	result, err := shoot.Apply(ctx, tb.Cluster, progress, manifest)
	if err != nil {
		return err
	}
	if result.Status == nil {
		return errors.New("the Shoot of example/shoot.yaml has no caches")
	}
	nodes, err := pullers(ctx, tb)
	if err != nil {
		return err
	}
	var outcomes []pull.Outcome
	for _, node := range nodes {
		if err := progress.Step("Waiting until the node "+node.Name+" uses the caches", func() error {
			for _, cache := range result.Status.Caches {
				if err := pull.WaitForMirror(ctx, node, cache.Upstream); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
		err := progress.Step("Pulling "+images.Alpine+" on "+node.Name, func() error {
			outcome, err := pull.Measured(ctx, tb.Upstream, node, images.Alpine)
			outcomes = append(outcomes, outcome)
			return err
		})
		if err != nil {
			return err
		}
	}
	fmt.Println()
	if err := printOutcomes(os.Stdout, outcomes); err != nil {
		return err
	}
	first, second := outcomes[0], outcomes[1]
	if first.BlobRequests == 0 || first.FromNodes > 0 {
		return errors.New("the first pull did not come from the upstream through the cache")
	}
	if second.BlobRequests > 0 || second.FromNodes > 0 {
		return errors.New("the second pull was not served from the cache")
	}
	fmt.Printf(`
The Shoot is yours now; its kubeconfig is %s. Try

  bin/testbed pull --node %s %s
  bin/testbed kubectl -n kube-system get pvc -l upstream-host=docker.io
  bin/testbed log

and "make kind-down" when you are done.
`, tb.Cluster.Kubeconfig(), nodes[0].Name, images.SampleQuay)
	return nil
}

// pullers returns two nodes, workers first.
func pullers(ctx context.Context, tb *testbed.Testbed) ([]kindcluster.Node, error) {
	nodes, err := tb.Cluster.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	var workers, others []kindcluster.Node
	for _, node := range nodes {
		if node.Role == "worker" {
			workers = append(workers, node)
		} else {
			others = append(others, node)
		}
	}
	if all := append(workers, others...); len(all) >= 2 {
		return all[:2], nil
	}
	return nil, errors.New("the demo needs two nodes: use --workers 1 or more")
}
