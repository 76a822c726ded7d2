// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"

	"github.com/registry-cache/extension/test/testbed/controlplane"
)

func programsCommand() *cobra.Command {
	return &cobra.Command{Use: "programs", Short: "Build the programs of the control planes that tests run", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := controlplane.Build(cmd.Context(), progress())
			return err
		}}
}
