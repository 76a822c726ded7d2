// SPDX-License-Identifier: Apache-2.0

// Package kindcluster makes the kind cluster that is garden, seed and Shoot at once, repairs it and removes it.
//
// The nodes run an image of package nodeimage: a guard in it keeps packets inside of the testbed, containerd renders
// the CNI configuration, and the pod network between nodes is one VXLAN device whose peers this package writes.
package kindcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/registry-cache/extension/test/testbed/host"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

const (
	// DefaultName is the name of the cluster that the make targets share.
	DefaultName = "registry-cache"
	// DefaultWorkers is the number of worker nodes of a new cluster: two, so that what one node caches can be
	// pulled by another.
	DefaultWorkers = 2
	// DefaultKubeProxyMode is kube-proxy's mode of a new cluster. In it, packets to an unowned service address and to
	// a wrong port of an owned one are dropped.
	DefaultKubeProxyMode = "iptables"

	// network is the name that kind gives the network of the nodes, shared by all clusters of a host.
	network = "kind"
)

// Options say which cluster is meant and, for a new one, how it is made.
type Options struct {
	// Name is the cluster's name; empty means DefaultName.
	Name string
	// Workers is the number of worker nodes; zero means DefaultWorkers for a new cluster, and as many as there are
	// for an existing one.
	Workers int
	// NodeImage is the reference of an image in the engine's storage. A new cluster needs it; empty means any for an
	// existing one.
	NodeImage string
	// KubeProxyMode is "iptables" or "nftables"; empty means DefaultKubeProxyMode for a new cluster, and any for an
	// existing one.
	KubeProxyMode string
	// Kubeconfig is the path of the kubeconfig file to write; empty means workspace.Kubeconfig().
	Kubeconfig string
}

func (o Options) complete() (Options, error) {
	if o.Name == "" {
		o.Name = DefaultName
	}
	if o.Workers < 0 {
		return o, fmt.Errorf("number of workers %d: it must not be negative", o.Workers)
	}
	switch o.KubeProxyMode {
	case "", "iptables", "nftables":
	default:
		return o, fmt.Errorf("kube-proxy mode %q: use iptables or nftables", o.KubeProxyMode)
	}
	if o.Kubeconfig == "" {
		kubeconfig, err := workspace.Kubeconfig()
		if err != nil {
			return o, err
		}
		o.Kubeconfig = kubeconfig
	}
	return o, nil
}

// Cluster is an existing kind cluster. Its methods may be called from several goroutines.
type Cluster struct {
	name       string
	kubeconfig string
	engine     *host.Engine
}

// Open returns the existing cluster. It neither starts nor repairs anything: a cluster with a stopped node or without a
// kubeconfig is an error.
func Open(ctx context.Context, e *host.Engine, o Options) (*Cluster, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	c := newCluster(e, o)
	containers, err := c.containers(ctx)
	if err != nil {
		return nil, err
	}
	if len(containers) == 0 {
		return nil, fmt.Errorf("there is no kind cluster %q", o.Name)
	}
	for _, container := range containers {
		if !container.State.Running {
			return nil, fmt.Errorf("node %s of cluster %q does not run", container.Name, o.Name)
		}
	}
	if _, err := os.Stat(o.Kubeconfig); err != nil {
		return nil, fmt.Errorf("cluster %q exists, but its kubeconfig does not: %w", o.Name, err)
	}
	return c, nil
}

func newCluster(e *host.Engine, o Options) *Cluster {
	return &Cluster{name: o.Name, kubeconfig: o.Kubeconfig, engine: e}
}

// Name returns the cluster's name.
func (c *Cluster) Name() string { return c.name }

// Engine returns the container engine that the nodes run in.
func (c *Cluster) Engine() *host.Engine { return c.engine }

// Kubeconfig returns the path of the kubeconfig file. It reaches the API server on a loopback port of the host and has
// the rights of a cluster administrator.
func (c *Cluster) Kubeconfig() string { return c.kubeconfig }

// Network returns the name of the engine's network that the nodes are connected to.
func (c *Cluster) Network() string { return network }

// RESTConfig returns the access that the kubeconfig file describes.
func (c *Cluster) RESTConfig() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reading kubeconfig %s: %w", c.kubeconfig, err)
	}
	// client-go's default of 5 requests a second is for controllers that share a server with many.
	config.QPS, config.Burst = 100, 200
	return config, nil
}

func (c *Cluster) client() (*kubernetes.Clientset, error) {
	config, err := c.RESTConfig()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

// writeKubeconfig replaces the kubeconfig file by rename, readable for its owner alone.
func (c *Cluster) writeKubeconfig(content string) error {
	dir := filepath.Dir(c.kubeconfig)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".kubeconfig-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), c.kubeconfig)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing the kubeconfig: %w", err), os.Remove(f.Name()))
	}
	return nil
}
