// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"

	"github.com/registry-cache/extension/test/testbed/host"
	"github.com/registry-cache/extension/test/testbed/poll"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

const (
	// addedLabel marks the containers of nodes that AddWorker has made.
	addedLabel = "registry-cache.testbed.added"
	// kubeadmConfig is where kind has left what a node joined with.
	kubeadmConfig = "/kind/kubeadm.conf"
	// bootTimeout bounds the wait for systemd in a new node; a busy machine with two processors needed ten seconds.
	bootTimeout = 2 * time.Minute
	// tokenLifetime is how long the token of a new node is good for.
	tokenLifetime = 10 * time.Minute
)

// AddWorker lets one more worker join the cluster: kind makes nodes only together with a cluster. It is like the others,
// but it has nothing that the testbed puts on nodes later on: images, trusted CAs, Gardener's agent. It returns when the
// node is ready and connected to the others.
//
// The node is there for a while only: RemoveWorker removes it, and so does the next Ensure, because a cluster stays as it
// was made. Neither may run at the same time as another one of the three.
func (c *Cluster) AddWorker(ctx context.Context, p *workspace.Progress) (Node, error) {
	var added Node
	err := p.Step(fmt.Sprintf("adding a worker to the cluster %q", c.name), func() error {
		containers, err := c.containers(ctx)
		if err != nil {
			return err
		}
		like := slices.IndexFunc(containers, func(c container) bool {
			return c.Config.Labels[roleLabel] == Worker && c.Config.Labels[addedLabel] == ""
		})
		if like < 0 {
			return fmt.Errorf("cluster %q has no worker that another one could be like", c.name)
		}
		name := nextWorker(c.name, containers)
		err = c.join(ctx, p, name, containers[0].node(c.engine), containers[like].node(c.engine))
		if err == nil {
			added, err = c.node(ctx, name)
		}
		if err != nil {
			cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupWait)
			defer cancel()
			return errors.Join(fmt.Errorf("node %s: %w", name, err), c.removeContainer(cleanup, name))
		}
		return nil
	})
	return added, err
}

// join makes the container of a new node, lets it join, and settles what that changes.
func (c *Cluster) join(ctx context.Context, p *workspace.Progress, name string, controlPlane, like Node) error {
	made, err := c.readRecord(ctx, controlPlane)
	if err != nil {
		return err
	}
	if made == nil {
		return errors.New("the cluster is incomplete: it has no record of what it was made with")
	}
	volume, err := c.engine.Run(ctx, nil, "volume", "create", "--label", name+"=true")
	if err != nil {
		return fmt.Errorf("making its volume: %w", err)
	}
	if _, err := c.engine.Run(ctx, nil, workerArgs(c.engine.Name, c.name, name, made.NodeImage, strings.TrimSpace(string(volume)))...); err != nil {
		return fmt.Errorf("starting its container: %w", err)
	}
	node, err := c.node(ctx, name)
	if err != nil {
		return err
	}
	if err := poll.Until(ctx, pollInterval, bootTimeout, func(ctx context.Context) error {
		_, err := node.Run(ctx, nil, "systemctl", "is-active", "multi-user.target")
		return err
	}); err != nil {
		return fmt.Errorf("waiting for systemd: %w", err)
	}
	token, err := controlPlane.Run(ctx, nil, "kubeadm", "token", "create", "--kubeconfig", "/etc/kubernetes/admin.conf", "--ttl", tokenLifetime.String())
	if err != nil {
		return fmt.Errorf("making a token: %w", err)
	}
	config, err := like.Run(ctx, nil, "cat", kubeadmConfig)
	if err != nil {
		return fmt.Errorf("reading what node %s joined with: %w", like.Name, err)
	}
	joining, err := joinConfig(string(config), like, node, strings.TrimSpace(string(token)))
	if err != nil {
		return err
	}
	if err := node.WriteFile(ctx, kubeadmConfig, 0o600, []byte(joining)); err != nil {
		return err
	}
	if _, err := node.Run(ctx, nil, "kubeadm", "join", "--config", kubeadmConfig); err != nil {
		return fmt.Errorf("joining: %w", err)
	}
	return c.settle(ctx, p)
}

// workerArgs are the arguments that the engine makes the container of a worker with: those of kind, because the image is
// made for them.
func workerArgs(engine, cluster, name, image, volume string) []string {
	args := []string{
		"run", "--detach", "--tty", "--name", name, "--hostname", name, "--net", network,
		"--label", clusterLabel + "=" + cluster, "--label", roleLabel + "=" + Worker, "--label", addedLabel + "=true",
		"--privileged", "--cgroupns=private", "--tmpfs", "/tmp", "--tmpfs", "/run",
		"--volume", "/lib/modules:/lib/modules:ro", "--env", "KIND_EXPERIMENTAL_CONTAINERD_SNAPSHOTTER",
	}
	if engine == host.Podman {
		args = append(args, "--volume", volume+":"+nodeVolumeMount+":suid,exec,dev", "--env", "container=podman")
	} else {
		args = append(args, "--volume", volume+":"+nodeVolumeMount, "--init=false", "--restart=on-failure:1",
			"--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined")
	}
	return append(args, image)
}

var tokenLine = regexp.MustCompile(`(?m)^(\s*(?:- )?token: ).*$`)

// joinConfig is the configuration of kubeadm with which a node joined, for another node and with another token.
func joinConfig(of string, from, to Node, token string) (string, error) {
	if !tokenLine.MatchString(of) || !strings.Contains(of, from.IP) || from.IP == "" {
		return "", fmt.Errorf("%s of node %s has no token, or not the address %q", kubeadmConfig, from.Name, from.IP)
	}
	of = tokenLine.ReplaceAllString(of, "${1}"+token)
	for old, with := range map[string]string{from.Name: to.Name, from.IP: to.IP} {
		// Not a part of a longer name or address.
		of = regexp.MustCompile(`\b`+regexp.QuoteMeta(old)+`\b`).ReplaceAllString(of, with)
	}
	return of, nil
}

// nextWorker returns the name that kind would give the next worker.
func nextWorker(cluster string, containers []container) string {
	last := 1
	for _, container := range containers {
		if n, err := strconv.Atoi(strings.TrimPrefix(container.Name, cluster+"-"+Worker)); err == nil {
			last = max(last, n)
		}
	}
	return fmt.Sprintf("%s-%s%d", cluster, Worker, last+1)
}

// node returns the node with the name.
func (c *Cluster) node(ctx context.Context, name string) (Node, error) {
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return Node{}, err
	}
	for _, node := range nodes {
		if node.Name == name {
			return node, nil
		}
	}
	return Node{}, fmt.Errorf("there is no node %s in cluster %q", name, c.name)
}

// RemoveWorker removes a node that AddWorker has made, as a machine that is taken away: the others forget it, and so does
// the API. A node that is not there is no error.
func (c *Cluster) RemoveWorker(ctx context.Context, p *workspace.Progress, node Node) error {
	return p.Step(fmt.Sprintf("removing the worker %s", node.Name), func() error {
		if err := c.removeContainer(ctx, node.Name); err != nil {
			return err
		}
		return c.settle(ctx, p)
	})
}

// removeAdded removes the containers of AddWorker that are left of an interrupted run, and returns the others.
func (c *Cluster) removeAdded(ctx context.Context, containers []container) ([]container, error) {
	var stay []container
	for _, container := range containers {
		if container.Config.Labels[addedLabel] == "" {
			stay = append(stay, container)
		} else if err := c.removeContainer(ctx, container.Name); err != nil {
			return nil, err
		}
	}
	return stay, nil
}

// removeContainer removes the container of a node that AddWorker has made, with its volume.
func (c *Cluster) removeContainer(ctx context.Context, name string) error {
	containers, err := c.containers(ctx)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(containers, func(c container) bool { return c.Name == name })
	if at < 0 {
		return nil
	}
	if containers[at].Config.Labels[addedLabel] == "" {
		return fmt.Errorf("node %s belongs to the cluster as it was made", name)
	}
	return c.remove(ctx, containers[at:at+1], mounted(containers[at:at+1]))
}

// forgetNodes removes nodes without a container from the API, with their pods, and returns the others.
func forgetNodes(ctx context.Context, client kubernetes.Interface, joined []corev1.Node, containers []container) ([]corev1.Node, error) {
	var stay []corev1.Node
	for _, node := range joined {
		if slices.ContainsFunc(containers, func(c container) bool { return c.Name == node.Name }) {
			stay = append(stay, node)
			continue
		}
		if err := client.CoreV1().Nodes().Delete(ctx, node.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("removing node %s from the API: %w", node.Name, err)
		}
		// Nobody else says that they have ended, for a minute.
		pods, err := client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", node.Name).String()})
		if err != nil {
			return nil, fmt.Errorf("listing the pods of node %s: %w", node.Name, err)
		}
		for _, pod := range pods.Items {
			err := client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
			if err != nil && !apierrors.IsNotFound(err) {
				return nil, fmt.Errorf("removing pod %s/%s of node %s: %w", pod.Namespace, pod.Name, node.Name, err)
			}
		}
	}
	return stay, nil
}
