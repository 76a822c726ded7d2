// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	kind "sigs.k8s.io/kind/pkg/cluster"

	"github.com/registry-cache/extension/test/testbed/host"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

const (
	// recordPath is a file in the control plane's node. It is written when all nodes have joined, so a cluster without
	// it was left by an interrupted run.
	recordPath = "/kind/registry-cache-testbed.json"
	// settleTimeout bounds the wait for nodes to be ready after they were started, for DNS after it was configured, and
	// for Services to be reached.
	settleTimeout = 2 * time.Minute
)

// record is what a cluster was made with.
type record struct {
	Workers       int    `json:"workers"`
	NodeImage     string `json:"nodeImage"`
	KubeProxyMode string `json:"kubeProxyMode"`
}

// action is what Ensure has to do about the nodes before it settles the rest.
type action int

const (
	create action = iota
	recreate
	keep
)

// decide returns what to do with the nodes that were found. made is nil if the cluster has no record. The error tells
// that another cluster is wanted than the one that is there: that is not this package's decision.
func decide(nodes int, made *record, o Options) (do action, reason string, err error) {
	switch {
	case nodes == 0:
		return create, "", nil
	case made == nil:
		return recreate, "an interrupted run left it incomplete", nil
	case nodes != 1+made.Workers:
		return recreate, fmt.Sprintf("it was made with %d nodes, and %d are there", 1+made.Workers, nodes), nil
	}
	for _, property := range []struct {
		name      string
		has, want any
		given     bool
	}{
		{"workers", made.Workers, o.Workers, o.Workers != 0},
		{"node image", made.NodeImage, o.NodeImage, o.NodeImage != ""},
		{"kube-proxy mode", made.KubeProxyMode, o.KubeProxyMode, o.KubeProxyMode != ""},
	} {
		if property.given && property.has != property.want {
			return keep, "", fmt.Errorf(`cluster %q exists with %s %v, and %v is wanted: remove it first ("make kind-down")`,
				o.Name, property.name, property.has, property.want)
		}
	}
	return keep, "", nil
}

// like returns the options with what is not given taken from a cluster that was there, if it has a record.
func (o Options) like(made *record) Options {
	if made != nil {
		o.Workers = cmp.Or(o.Workers, made.Workers)
		o.NodeImage = cmp.Or(o.NodeImage, made.NodeImage)
		o.KubeProxyMode = cmp.Or(o.KubeProxyMode, made.KubeProxyMode)
	}
	return o
}

// Ensure makes the cluster, or finds it and repairs what is missing: stopped nodes, kubeconfig, pod routes, names. A
// cluster that an interrupted run left incomplete, or that has lost a node, is made anew. Ensure is idempotent, and it
// returns when all nodes are ready, pods reach pods on every node, and cluster names resolve.
//
// kind reads the environment of the process, so neither Ensure nor anything that changes the environment may run at the
// same time in this process. A cancelled creation removes its nodes before Ensure returns.
func Ensure(ctx context.Context, e *host.Engine, p *workspace.Progress, o Options) (*Cluster, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	c := newCluster(e, o)
	containers, err := c.containers(ctx)
	if err != nil {
		return nil, err
	}
	if containers, err = c.removeAdded(ctx, containers); err != nil {
		return nil, err
	}
	started, err := c.startStopped(ctx, containers)
	if err != nil {
		return nil, err
	}
	if len(started) > 0 {
		p.Printf("started stopped nodes: %s", strings.Join(started, ", "))
	}
	var made *record
	if len(containers) > 0 {
		if made, err = c.readRecord(ctx, containers[0].node(e)); err != nil {
			return nil, err
		}
	}
	do, reason, err := decide(len(containers), made, o)
	if err != nil {
		return nil, err
	}
	if do == recreate {
		o = o.like(made)
		p.Printf("cluster %q is made anew: %s", c.name, reason)
	}
	if do == keep {
		err = p.Step(fmt.Sprintf("checking the cluster %q", c.name), func() error { return c.settle(ctx, p) })
	} else {
		err = c.create(ctx, p, o)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Cluster) create(ctx context.Context, p *workspace.Progress, o Options) error {
	if o.NodeImage == "" {
		return fmt.Errorf("cluster %q does not exist, and no node image is given to make it of", c.name)
	}
	if o.Workers == 0 {
		o.Workers = DefaultWorkers
	}
	if o.KubeProxyMode == "" {
		o.KubeProxyMode = DefaultKubeProxyMode
	}
	title := fmt.Sprintf("making the kind cluster %q: 1 control plane, %d workers", c.name, o.Workers)
	return p.Step(title, func() error {
		if err := c.removeNodes(ctx); err != nil {
			return err
		}
		if err := c.removeKubeconfig(); err != nil {
			return err
		}
		provider := kindProvider(c.engine, p)
		if err := c.untilCancelled(ctx, func() error {
			return provider.Create(c.name,
				kind.CreateWithV1Alpha4Config(kindConfig(o)),
				kind.CreateWithNodeImage(o.NodeImage),
				kind.CreateWithKubeconfigPath(c.kubeconfig),
				kind.CreateWithWaitForReady(readyWait))
		}); err != nil {
			return err
		}
		if err := c.writeRecord(ctx, record{Workers: o.Workers, NodeImage: o.NodeImage, KubeProxyMode: o.KubeProxyMode}); err != nil {
			return err
		}
		return c.settle(ctx, p)
	})
}

// settle brings everything but the nodes themselves into the wanted state.
func (c *Cluster) settle(ctx context.Context, p *workspace.Progress) error {
	if err := c.exportKubeconfig(p); err != nil {
		return err
	}
	containers, err := c.containers(ctx)
	if err != nil {
		return err
	}
	c.prioritize(ctx, p, containers[0])
	client, err := c.client()
	if err != nil {
		return err
	}
	joined, err := waitForNodes(ctx, client, containers)
	if err != nil {
		return err
	}
	if joined, err = forgetNodes(ctx, client, joined, containers); err != nil {
		return err
	}
	nodes := make([]Node, len(containers))
	for i, container := range containers {
		nodes[i] = container.node(c.engine)
	}
	if err := connectPods(ctx, nodes, joined); err != nil {
		return fmt.Errorf("connecting the pods of the nodes: %w", err)
	}
	entries, err := ensureDNS(ctx, client, closeCorefile)
	if err != nil {
		return fmt.Errorf("configuring DNS: %w", err)
	}
	// The engine rewrites the file when it starts a node.
	if err := writeHosts(ctx, nodes, entries); err != nil {
		return err
	}
	return waitForServices(ctx, client, nodes)
}

// controlPlaneShares is the CPU weight of the control plane's node: 8 times that of other containers with version 1 of
// cgroups, 3 to 5 times with version 2, depending on the OCI runtime.
const controlPlaneShares = "8192"

// prioritize gives the control plane more processor time than the workers on the same machine when all of them are busy.
// Without it, pulls on the workers make the API server fail its probes and components lose their leases. Ensure repeats the
// setting, because some engines forget it when the node stops. A cluster without it works, so a container engine that does
// not support it is no error.
func (c *Cluster) prioritize(ctx context.Context, p *workspace.Progress, controlPlane container) {
	if _, err := c.engine.Run(ctx, nil, "update", "--cpu-shares", controlPlaneShares, controlPlane.Name); err != nil {
		p.Printf("the control plane has no priority over other nodes: %v", err)
	}
}

func (c *Cluster) exportKubeconfig(p *workspace.Progress) error {
	var content string
	if err := c.withEnvironment(func() (err error) {
		content, err = kindProvider(c.engine, p).KubeConfig(c.name, false)
		return err
	}); err != nil {
		return fmt.Errorf("reading the kubeconfig from the control plane: %w", err)
	}
	return c.writeKubeconfig(content)
}

func (c *Cluster) readRecord(ctx context.Context, controlPlane Node) (*record, error) {
	out, err := controlPlane.Script(ctx, nil, `if [ -e "$1" ]; then cat "$1"; fi`, recordPath)
	if err != nil || len(bytes.TrimSpace(out)) == 0 {
		return nil, err
	}
	r := new(record)
	if err := json.Unmarshal(out, r); err != nil {
		return nil, fmt.Errorf(`reading %s of node %s: %w: remove the cluster ("make kind-down") and make it again`, recordPath, controlPlane.Name, err)
	}
	return r, nil
}

func (c *Cluster) writeRecord(ctx context.Context, r record) error {
	content, err := json.Marshal(r)
	if err != nil {
		return err
	}
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return err
	}
	return nodes[0].WriteFile(ctx, recordPath, 0o644, append(content, '\n'))
}
