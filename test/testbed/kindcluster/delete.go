// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/registry-cache/extension/test/testbed/host"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// Delete removes the cluster: its nodes with their volumes, the loop devices of files in those, the nodes' network if
// nothing else is connected to it, and the kubeconfig file. What does not exist is no error.
func Delete(ctx context.Context, e *host.Engine, p *workspace.Progress, o Options) error {
	o, err := o.complete()
	if err != nil {
		return err
	}
	c := newCluster(e, o)
	return p.Step(fmt.Sprintf("removing the kind cluster %q", c.name), func() error {
		return errors.Join(c.removeNodes(ctx), c.removeNetwork(ctx), c.removeKubeconfig())
	})
}

// removeNodes removes the containers of the nodes, their volumes, and what an interrupted creation has left of either.
func (c *Cluster) removeNodes(ctx context.Context) error {
	containers, err := c.containers(ctx)
	if err != nil {
		return err
	}
	volumes, err := c.volumes(ctx, containers)
	if err != nil {
		return err
	}
	return c.remove(ctx, containers, volumes)
}

// remove removes containers of nodes, and the volumes.
func (c *Cluster) remove(ctx context.Context, containers []container, volumes []string) error {
	// Only while the files exist can it be told whose a loop device is.
	loops, err := c.loopDevices(ctx, volumes)
	if err != nil {
		return err
	}
	if len(containers) > 0 {
		command := []string{"rm", "--force", "--volumes"}
		if c.engine.Name == host.Podman {
			// docker kills at once; podman would wait for the nodes to shut down.
			command = append(command, "--time=0")
		}
		for _, container := range containers {
			command = append(command, container.Name)
		}
		if _, err := c.engine.Run(ctx, nil, command...); err != nil {
			return fmt.Errorf("removing nodes of cluster %q: %w", c.name, err)
		}
	}
	left, err := c.existing(ctx, volumes)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		if _, err := c.engine.Run(ctx, nil, append([]string{"volume", "rm", "--force"}, left...)...); err != nil {
			return fmt.Errorf("removing volumes of cluster %q: %w", c.name, err)
		}
	}
	return detach(loops)
}

// existing returns those of the volumes that were not removed with their containers.
func (c *Cluster) existing(ctx context.Context, volumes []string) ([]string, error) {
	out, err := c.engine.Run(ctx, nil, "volume", "ls", "--format", "{{.Name}}")
	if err != nil {
		return nil, fmt.Errorf("listing volumes: %w", err)
	}
	all := strings.Fields(string(out))
	return slices.DeleteFunc(slices.Clone(volumes), func(name string) bool { return !slices.Contains(all, name) }), nil
}

// mounted returns the names of the volumes that are mounted into the containers.
func mounted(containers []container) []string {
	var volumes []string
	for _, container := range containers {
		for _, mount := range container.Mounts {
			if mount.Type == "volume" {
				volumes = append(volumes, mount.Name)
			}
		}
	}
	return volumes
}

// volumes returns the names of the volumes that belong to nodes of the cluster: those mounted into the containers, and
// under podman those that kind has labelled with the name of a node, mounted or not yet.
func (c *Cluster) volumes(ctx context.Context, containers []container) ([]string, error) {
	volumes := mounted(containers)
	out, err := c.engine.Run(ctx, nil, "volume", "ls", "--format", "{{.Name}}\t{{.Labels}}")
	if err != nil {
		return nil, fmt.Errorf("listing volumes: %w", err)
	}
	volumes = append(volumes, labelledVolumes(string(out), c.name)...)
	slices.Sort(volumes)
	return slices.Compact(volumes), nil
}

// labelledVolumes returns the volumes with a label that names a node of the cluster, from lines of name and labels in
// either engine's notation ("map[NODE:true]", "NODE=true").
func labelledVolumes(lines, cluster string) []string {
	node := regexp.MustCompile(`(^|[\[, ])` + regexp.QuoteMeta(cluster) + `-(` + ControlPlane + `|` + Worker + `)[0-9]*[:=]`)
	var volumes []string
	for line := range strings.Lines(lines) {
		if name, labels, found := strings.Cut(strings.TrimSpace(line), "\t"); found && node.MatchString(labels) {
			volumes = append(volumes, name)
		}
	}
	return volumes
}

// removeNetwork removes the network that all kind clusters share, unless a container is connected to it.
func (c *Cluster) removeNetwork(ctx context.Context) error {
	out, err := c.engine.Run(ctx, nil, "network", "ls", "--format", "{{.Name}}")
	if err != nil {
		return fmt.Errorf("listing networks: %w", err)
	}
	if !slices.Contains(strings.Fields(string(out)), network) {
		return nil
	}
	out, err = c.engine.Run(ctx, nil, "ps", "--all", "--quiet", "--filter", "network="+network)
	if err != nil {
		return fmt.Errorf("listing the containers of network %s: %w", network, err)
	}
	if len(strings.Fields(string(out))) > 0 {
		return nil
	}
	if _, err := c.engine.Run(ctx, nil, "network", "rm", network); err != nil {
		return fmt.Errorf("removing network %s: %w", network, err)
	}
	return nil
}

func (c *Cluster) removeKubeconfig() error {
	if err := os.Remove(c.kubeconfig); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the kubeconfig: %w", err)
	}
	return nil
}
