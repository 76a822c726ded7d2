// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/registry-cache/extension/test/testbed"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// kubectlCommand spares users an installation: the node image has kubectl. It runs on this machine, where the files and
// the editor of the user are.
func kubectlCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl ...",
		Short:              "Run kubectl for the cluster",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			tb, err := testbed.Open(cmd.Context())
			if err != nil {
				return err
			}
			kubectl, err := fetchKubectl(cmd.Context(), tb.Cluster)
			if err != nil {
				return err
			}
			if err := os.Setenv("KUBECONFIG", tb.Cluster.Kubeconfig()); err != nil {
				return err
			}
			// In place of this process: signals, the terminal and the exit code are kubectl's.
			return fmt.Errorf("running %s: %w", kubectl, unix.Exec(kubectl, append([]string{"kubectl"}, args...), os.Environ()))
		},
	}
}

// fetchKubectl copies the static program out of the control-plane node, once for a cluster, and returns its path.
func fetchKubectl(ctx context.Context, cluster *kindcluster.Cluster) (string, error) {
	state, err := workspace.StateDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(state, "bin", "kubectl")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return path, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	node := kindcluster.ControlPlaneName(cluster.Name())
	source, err := cluster.Engine().Run(ctx, nil, "exec", node, "sh", "-c", "command -v kubectl")
	if err != nil {
		return "", err
	}
	partial, err := os.MkdirTemp(filepath.Dir(path), "partial-")
	if err != nil {
		return "", err
	}
	_, err = cluster.Engine().Run(ctx, nil, "cp", node+":"+strings.TrimSpace(string(source)), filepath.Join(partial, "kubectl"))
	if err == nil {
		err = os.Rename(filepath.Join(partial, "kubectl"), path)
	}
	return path, errors.Join(err, os.RemoveAll(partial))
}
