// SPDX-License-Identifier: Apache-2.0

// Command testbed makes, shows and removes the kind-based Shoot. "make" calls it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/registry-cache/extension/test/testbed"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

func main() {
	// The first signal cancels what is going on, the second one ends the process.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	context.AfterFunc(ctx, stop)
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "testbed:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "testbed",
		Short:         "A kind-based Shoot with the registry-cache extension",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(upCommand(), downCommand(), cleanCommand(), demoCommand(), shootCommand(), pullCommand(), logCommand(), kubectlCommand(), programsCommand())
	return root
}

func progress() *workspace.Progress { return workspace.NewProgress(os.Stderr) }

func upOptions(cmd *cobra.Command) *testbed.Options {
	options := &testbed.Options{NodeImage: os.Getenv("NODE_IMAGE")}
	cmd.Flags().IntVar(&options.Workers, "workers", 2, "number of worker nodes")
	cmd.Flags().StringVar(&options.NodeImage, "node-image", options.NodeImage, "node image to use instead of the published or self-built one (environment: NODE_IMAGE)")
	return options
}

func upCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "up", Short: "Make the testbed, or repair what is missing", Args: cobra.NoArgs}
	options := upOptions(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		tb, err := testbed.Up(cmd.Context(), progress(), *options)
		if err != nil {
			return err
		}
		fmt.Printf("The testbed is up. export KUBECONFIG=%s\n", tb.Cluster.Kubeconfig())
		return nil
	}
	return cmd
}

func downCommand() *cobra.Command {
	return &cobra.Command{Use: "down", Short: "Remove every trace of the testbed", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return testbed.Down(cmd.Context(), progress()) }}
}

func cleanCommand() *cobra.Command {
	return &cobra.Command{Use: "clean", Short: "Remove the testbed and everything that was built for it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return testbed.Clean(cmd.Context(), progress()) }}
}
