// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/registry-cache/extension/test/testbed"
	"github.com/registry-cache/extension/test/testbed/shoot"
)

// maxManifest bounds the Shoot manifest, in bytes: it must fit into an object of the API server.
const maxManifest = 1 << 20

func shootCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "shoot", Short: "Apply or delete a Shoot and wait for the gardenlet"}
	cmd.AddCommand(
		manifestCommand("apply", "Apply the Shoot and wait until every node has applied it", applyShoot),
		manifestCommand("delete", "Delete the Shoot and wait until it is gone, on the nodes, too", deleteShoot),
	)
	return cmd
}

func manifestCommand(use, short string, run func(ctx context.Context, tb *testbed.Testbed, manifest []byte) error) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs}
	file := cmd.Flags().StringP("filename", "f", "example/shoot.yaml", "the Shoot manifest")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		manifest, err := readManifest(*file)
		if err != nil {
			return err
		}
		tb, err := testbed.Open(cmd.Context())
		if err != nil {
			return err
		}
		return run(cmd.Context(), tb, manifest)
	}
	return cmd
}

func readManifest(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	manifest, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err == nil && len(manifest) > maxManifest {
		err = fmt.Errorf("%s: larger than %d bytes: not a Shoot manifest", path, maxManifest)
	}
	return manifest, err
}

func applyShoot(ctx context.Context, tb *testbed.Testbed, manifest []byte) error {
	result, err := shoot.Apply(ctx, tb.Cluster, progress(), manifest)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "UPSTREAM\tENDPOINT\tREMOTE URL")
	if result.Status != nil {
		for _, cache := range result.Status.Caches {
			fmt.Fprintf(w, "%s\t%s\t%s\n", cache.Upstream, cache.Endpoint, cache.RemoteURL)
		}
	}
	return w.Flush()
}

func deleteShoot(ctx context.Context, tb *testbed.Testbed, manifest []byte) error {
	return shoot.Delete(ctx, tb.Cluster, progress(), manifest)
}
