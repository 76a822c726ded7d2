// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/registry-cache/extension/test/testbed"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/pull"
)

func pullCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Pull an image with a node's containerd and show where its bytes came from",
		Args:  cobra.ExactArgs(1),
	}
	name := cmd.Flags().String("node", "", "node that pulls; default: the first worker")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		tb, err := testbed.Open(ctx)
		if err != nil {
			return err
		}
		nodes, err := tb.Cluster.Nodes(ctx)
		if err != nil {
			return err
		}
		at := slices.IndexFunc(nodes, func(node kindcluster.Node) bool {
			return node.Name == *name || *name == "" && node.Role == "worker"
		})
		if at < 0 {
			return fmt.Errorf("no node %q in the cluster %s", *name, tb.Cluster.Name())
		}
		outcome, err := pull.Measured(ctx, tb.Upstream, nodes[at], args[0])
		if err != nil {
			return err
		}
		return printOutcomes(os.Stdout, []pull.Outcome{outcome})
	}
	return cmd
}

// printOutcomes prints the table of the demo. Every figure in it comes from the upstream's request log.
func printOutcomes(out io.Writer, outcomes []pull.Outcome) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "PULL\tNODE\tSERVED BY\tUPSTREAM REQUESTS\tBLOBS FROM UPSTREAM\tBYTES FROM UPSTREAM\tSECONDS")
	for _, o := range outcomes {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%.2f\n", o.Reference, o.Node, o.ServedBy(), o.Requests, o.BlobRequests, o.BlobBytes, o.Duration.Seconds())
	}
	return w.Flush()
}

func logCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "log",
		Short: "Show every request that the upstream registry has received",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			tb, err := testbed.Open(cmd.Context())
			if err != nil {
				return err
			}
			requests, err := tb.Upstream.Requests(cmd.Context(), 0)
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "TIME\tMETHOD\tKIND\tREPOSITORY\tREFERENCE\tSTATUS\tBYTES\tUSER AGENT")
			for _, r := range requests {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s/%s\t%s\t%d\t%d\t%s\n", r.Time.Format("15:04:05.000"), r.Method, r.Kind, r.Host, r.Repository, shorten(r.Reference), r.Status, r.Bytes, r.UserAgent)
			}
			return w.Flush()
		},
	}
}

// shorten cuts a digest to what tells two of them apart.
func shorten(reference string) string {
	const shown = len("sha256:") + 12
	if strings.HasPrefix(reference, "sha256:") && len(reference) > shown {
		return reference[:shown]
	}
	return reference
}
