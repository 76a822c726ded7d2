// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Labels that kind puts on the containers of nodes.
const (
	clusterLabel = "io.x-k8s.kind.cluster"
	roleLabel    = "io.x-k8s.kind.role"
)

// container is what docker and podman tell alike about the container of a node.
type container struct {
	Name  string
	State struct {
		Running   bool
		StartedAt time.Time
	}
	Config struct {
		Labels map[string]string
	}
	NetworkSettings struct {
		Networks map[string]struct{ IPAddress string }
	}
	Mounts []struct{ Type, Name, Source, Destination string }
}

func (c container) node(e engine) Node {
	return Node{Name: c.Name, Role: c.Config.Labels[roleLabel], IP: c.NetworkSettings.Networks[network].IPAddress, engine: e}
}

// containers returns the containers of the cluster's nodes, running or not: the control plane first, then the workers
// in their order.
func (c *Cluster) containers(ctx context.Context) ([]container, error) {
	out, err := c.engine.Run(ctx, nil, "ps", "--all", "--filter", "label="+clusterLabel+"="+c.name, "--format", "{{.Names}}")
	if err != nil {
		return nil, fmt.Errorf("listing the nodes of cluster %q: %w", c.name, err)
	}
	names := strings.Fields(string(out))
	if len(names) == 0 {
		return nil, nil
	}
	if out, err = c.engine.Run(ctx, nil, append([]string{"container", "inspect"}, names...)...); err != nil {
		return nil, fmt.Errorf("inspecting the nodes of cluster %q: %w", c.name, err)
	}
	return parseContainers(out)
}

func parseContainers(inspected []byte) ([]container, error) {
	var containers []container
	if err := json.Unmarshal(inspected, &containers); err != nil {
		return nil, fmt.Errorf("reading what the container engine tells about nodes: %w", err)
	}
	for i := range containers {
		containers[i].Name = strings.TrimPrefix(containers[i].Name, "/") // docker's names are paths
	}
	slices.SortFunc(containers, func(a, b container) int {
		return cmp.Or(
			cmp.Compare(a.Config.Labels[roleLabel], b.Config.Labels[roleLabel]),
			cmp.Compare(len(a.Name), len(b.Name)), // "worker" before "worker2" before "worker10"
			cmp.Compare(a.Name, b.Name),
		)
	})
	return containers, nil
}

// startStopped starts the containers that do not run and returns their names.
func (c *Cluster) startStopped(ctx context.Context, containers []container) ([]string, error) {
	var stopped []string
	for _, container := range containers {
		if !container.State.Running {
			stopped = append(stopped, container.Name)
		}
	}
	if len(stopped) == 0 {
		return nil, nil
	}
	if _, err := c.engine.Run(ctx, nil, append([]string{"start"}, stopped...)...); err != nil {
		return nil, fmt.Errorf("starting the stopped nodes of cluster %q: %w", c.name, err)
	}
	return stopped, nil
}
