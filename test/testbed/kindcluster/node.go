// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"

	"golang.org/x/sync/errgroup"
)

// Roles of nodes.
const (
	ControlPlane = "control-plane"
	Worker       = "worker"
)

// engine is what a Node needs of host.Engine.
type engine interface {
	Run(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error)
}

// Node is a node of the cluster: a container that runs systemd, containerd and the kubelet.
type Node struct {
	// Name is the name of the node and of its container.
	Name string
	// Role is ControlPlane or Worker.
	Role string
	// IP is the IPv4 address in the network of the nodes; empty if the container does not run. It may be another one
	// after a restart.
	IP string

	engine engine
}

// ControlPlaneName returns the name of the control-plane node of the cluster.
func ControlPlaneName(cluster string) string { return cluster + "-" + ControlPlane }

// Nodes returns the nodes: the control plane first, then the workers in their order.
func (c *Cluster) Nodes(ctx context.Context) ([]Node, error) {
	containers, err := c.containers(ctx)
	if err != nil {
		return nil, err
	}
	if len(containers) == 0 {
		return nil, fmt.Errorf("there is no kind cluster %q", c.name)
	}
	nodes := make([]Node, len(containers))
	for i, container := range containers {
		nodes[i] = container.node(c.engine)
	}
	return nodes, nil
}

// Run runs a program in the node and returns its standard output. stdin may be nil. The error is that of
// host.Engine.Run; an *exec.ExitError in its chain has the program's exit code. When ctx ends, Run returns, but the
// program may go on.
func (n Node) Run(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
	command := []string{"exec", "--privileged"}
	if stdin != nil {
		command = append(command, "--interactive")
	}
	return n.engine.Run(ctx, stdin, append(append(command, n.Name), args...)...)
}

// Script runs a POSIX shell script in the node, which gets args as $1 and so on, and returns its standard output.
func (n Node) Script(ctx context.Context, stdin io.Reader, script string, args ...string) ([]byte, error) {
	return n.Run(ctx, stdin, append([]string{"sh", "-euc", script, "sh"}, args...)...)
}

// writeScript refuses to replace the file where the content did not arrive in full: the end of standard input may be
// that of a client that died.
const writeScript = `
mkdir -p "${1%/*}/"
partial=$(mktemp "${1%/*}/.partial-XXXXXX")
trap 'rm -f "$partial"' EXIT
cat >"$partial"
[ "$(wc -c <"$partial")" -eq "$3" ] || { echo "$1: expected $3 bytes" >&2; exit 1; }
chmod "$2" "$partial"
mv -f "$partial" "$1"
`

// WriteFile writes a file in the node, owned by root and with the permission bits of mode. Missing parent folders are
// made, and an existing file is replaced by rename, so a reader sees the old content or the new one. /etc/hosts,
// /etc/hostname and /etc/resolv.conf are mounts and cannot be replaced.
func (n Node) WriteFile(ctx context.Context, file string, mode fs.FileMode, content []byte) error {
	if !path.IsAbs(file) {
		return fmt.Errorf("writing %q to node %s: the path must be absolute", file, n.Name)
	}
	if _, err := n.Script(ctx, bytes.NewReader(content), writeScript, path.Clean(file), fmt.Sprintf("%04o", mode.Perm()), strconv.Itoa(len(content))); err != nil {
		return fmt.Errorf("writing %s to node %s: %w", file, n.Name, err)
	}
	return nil
}

// onEach calls do for all nodes at once and returns the first error, with the node's name. The context of the others
// ends with it.
func onEach(ctx context.Context, nodes []Node, do func(context.Context, Node) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, node := range nodes {
		group.Go(func() error {
			if err := do(ctx, node); err != nil {
				return fmt.Errorf("node %s: %w", node.Name, err)
			}
			return nil
		})
	}
	return group.Wait()
}
