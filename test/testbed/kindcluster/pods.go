// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/registry-cache/extension/test/testbed/poll"
)

// pollInterval is how often the API is asked for a state.
const pollInterval = 250 * time.Millisecond

// waitForNodes waits until all nodes are ready, have reported since their containers were started, and are known by
// the address that their containers have now.
func waitForNodes(ctx context.Context, client kubernetes.Interface, containers []container) ([]corev1.Node, error) {
	var joined []corev1.Node
	err := poll.Until(ctx, pollInterval, settleTimeout, func(ctx context.Context) error {
		list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		joined = list.Items
		var unready []error
		for _, container := range containers {
			unready = append(unready, checkNode(joined, container))
		}
		return errors.Join(unready...)
	})
	if err != nil {
		return nil, fmt.Errorf("waiting for the nodes to be ready: %w", err)
	}
	return joined, nil
}

func checkNode(joined []corev1.Node, c container) error {
	at := slices.IndexFunc(joined, func(node corev1.Node) bool { return node.Name == c.Name })
	if at < 0 {
		return fmt.Errorf("node %s has not joined", c.Name)
	}
	node, address := joined[at], c.NetworkSettings.Networks[network].IPAddress
	if has := internalIP(node); has != address || address == "" {
		return fmt.Errorf("node %s is known by the address %q, and its container has %q", c.Name, has, address)
	}
	if node.Spec.PodCIDR == "" {
		return fmt.Errorf("node %s has no pod network", c.Name)
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type != corev1.NodeReady {
			continue
		}
		if condition.Status != corev1.ConditionTrue {
			return fmt.Errorf("node %s is not ready: %s", c.Name, condition.Message)
		}
		// The API has whole seconds.
		if condition.LastHeartbeatTime.Time.Before(c.State.StartedAt.Truncate(time.Second)) {
			return fmt.Errorf("node %s has not reported since its start", c.Name)
		}
		return nil
	}
	return fmt.Errorf("node %s has not reported whether it is ready", c.Name)
}

func internalIP(node corev1.Node) string {
	for _, address := range node.Status.Addresses {
		if address.Type == corev1.NodeInternalIP {
			return address.Address
		}
	}
	return ""
}

// peers returns the content of /etc/testbed-peers: one line "NODE_IP POD_CIDR" for each node. Neither addresses nor
// pod networks follow the order of the nodes, so both are read from the API.
func peers(joined []corev1.Node) (string, error) {
	lines := make([]string, len(joined))
	for i, node := range joined {
		ip, err := netip.ParseAddr(internalIP(node))
		if err != nil || !ip.Is4() {
			return "", fmt.Errorf("node %s: address %q is not IPv4", node.Name, internalIP(node))
		}
		cidr, err := netip.ParsePrefix(node.Spec.PodCIDR)
		if err != nil || !cidr.Addr().Is4() {
			return "", fmt.Errorf("node %s: pod network %q is not IPv4", node.Name, node.Spec.PodCIDR)
		}
		lines[i] = ip.String() + " " + cidr.String() + "\n"
	}
	slices.Sort(lines)
	return strings.Join(lines, ""), nil
}

// connectScript also repairs a guard that somebody has stopped: without it, packets would leave the node.
const connectScript = `
systemctl is-active --quiet testbed-guard.service && nft list table inet testbed >/dev/null 2>&1 ||
	systemctl restart testbed-guard.service
cat >/etc/testbed-peers.new
mv -f /etc/testbed-peers.new /etc/testbed-peers
testbed-net
`

// connectPods gives every node the route to the pods of every other one.
func connectPods(ctx context.Context, nodes []Node, joined []corev1.Node) error {
	content, err := peers(joined)
	if err != nil {
		return err
	}
	return onEach(ctx, nodes, func(ctx context.Context, node Node) error {
		_, err := node.Script(ctx, strings.NewReader(content), connectScript)
		return err
	})
}

// waitForServices waits until every node reaches the API server and CoreDNS by their Services: then kube-proxy works on
// it, CoreDNS is ready, and the pod network leads to it. What the API tells of pods may be older than a restart.
func waitForServices(ctx context.Context, client kubernetes.Interface, nodes []Node) error {
	dns, err := client.CoreV1().Services(dnsNamespace).Get(ctx, dnsService, metav1.GetOptions{})
	if err != nil {
		return err
	}
	urls := []string{"https://" + apiService + "/readyz", "http://" + dns.Spec.ClusterIP + ":9153/metrics"}
	return onEach(ctx, nodes, func(ctx context.Context, node Node) error {
		err := poll.Until(ctx, pollInterval, settleTimeout, func(ctx context.Context) error {
			_, err := node.get(ctx, urls...)
			return err
		})
		if err != nil {
			return fmt.Errorf("reaching Services: %w", err)
		}
		return nil
	})
}

// get requests the URLs from the node itself, one after the other, and returns the bodies.
func (n Node) get(ctx context.Context, urls ...string) (string, error) {
	out, err := n.Run(ctx, nil, append([]string{"curl", "--silent", "--show-error", "--fail", "--fail-early", "--insecure", "--max-time", "2"}, urls...)...)
	return string(out), err
}
