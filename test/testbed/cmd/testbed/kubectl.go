package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/registry-cache/extension/test/testbed"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
)

// kubectlCommand spares users an installation: the node image has kubectl.
func kubectlCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl ...",
		Short:              "Run kubectl on the control-plane node",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			tb, err := testbed.Open(cmd.Context())
			if err != nil {
				return err
			}
			node := kindcluster.ControlPlaneName(tb.Cluster.Name())
			command := append([]string{"exec", "-i", "-e", "KUBECONFIG=/etc/kubernetes/admin.conf", node, "kubectl"}, args...)
			return tb.Cluster.Engine().Stream(cmd.Context(), os.Stdin, os.Stdout, command...)
		},
	}
}
