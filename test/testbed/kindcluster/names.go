// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"

	"github.com/registry-cache/extension/test/testbed/poll"
)

const (
	dnsNamespace = metav1.NamespaceSystem
	// dnsName is the name of CoreDNS's Deployment and of its ConfigMap.
	dnsName = "coredns"
	// dnsService is the name that kubeadm gives the Service of the cluster's DNS.
	dnsService = "kube-dns"
	// corefileAnnotation on CoreDNS's pods has the hash of the configuration they started with. A change restarts
	// them: CoreDNS's own reload takes up to two minutes, most of it the kubelet's delay.
	corefileAnnotation = "registry-cache.testbed/corefile"
)

// SetHosts makes host names resolve to IP addresses in every node (/etc/hosts) and in pods (CoreDNS). The entries are
// host names by address; they replace those of earlier calls, so no entries remove them all. Names that are no entries
// and not the cluster's own do not resolve in pods.
func (c *Cluster) SetHosts(ctx context.Context, entries map[string][]string) error {
	for ip, names := range entries {
		if _, err := netip.ParseAddr(ip); err != nil {
			return fmt.Errorf("entry %q: the key must be an IP address: %w", ip, err)
		}
		for _, name := range names {
			if name == "" || strings.ContainsAny(name, " \t\n{}#\"") {
				return fmt.Errorf("entry %s: %q is not a host name", ip, name)
			}
		}
	}
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	if err := writeHosts(ctx, nodes, entries); err != nil {
		return err
	}
	_, err = ensureDNS(ctx, client, func(corefile string) string { return setHosts(closeCorefile(corefile), entries) })
	if err != nil {
		return fmt.Errorf("configuring DNS: %w", err)
	}
	return nil
}

const (
	hostsBegin = "# registry-cache testbed: begin"
	hostsEnd   = "# registry-cache testbed: end"
)

// hostsScript writes in place, because the container engine has mounted the file.
const hostsScript = `
wanted=$(sed "/^$1\$/,/^$2\$/d" /etc/hosts && cat)
[ "$wanted" = "$(cat /etc/hosts)" ] || printf '%s\n' "$wanted" >/etc/hosts
`

// writeHosts replaces the managed lines in /etc/hosts of the nodes.
func writeHosts(ctx context.Context, nodes []Node, entries map[string][]string) error {
	block := hostsBlock(entries)
	return onEach(ctx, nodes, func(ctx context.Context, node Node) error {
		if _, err := node.Script(ctx, strings.NewReader(block), hostsScript, hostsBegin, hostsEnd); err != nil {
			return fmt.Errorf("writing /etc/hosts: %w", err)
		}
		return nil
	})
}

func hostsBlock(entries map[string][]string) string {
	if len(entries) == 0 {
		return ""
	}
	var block strings.Builder
	block.WriteString(hostsBegin + "\n")
	for _, ip := range slices.Sorted(maps.Keys(entries)) {
		fmt.Fprintf(&block, "%s %s\n", ip, strings.Join(slices.Sorted(slices.Values(entries[ip])), " "))
	}
	block.WriteString(hostsEnd + "\n")
	return block.String()
}

// ensureDNS changes CoreDNS's configuration, has it restarted if it runs with another one, waits until all of it is
// available, and returns the entries of the hosts block.
func ensureDNS(ctx context.Context, client kubernetes.Interface, edit func(corefile string) string) (map[string][]string, error) {
	var corefile string
	if err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		configMaps := client.CoreV1().ConfigMaps(dnsNamespace)
		cm, err := configMaps.Get(ctx, dnsName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		corefile = edit(cm.Data["Corefile"])
		if corefile == cm.Data["Corefile"] {
			return nil
		}
		cm.Data["Corefile"] = corefile
		_, err = configMaps.Update(ctx, cm, metav1.UpdateOptions{})
		return err
	}); err != nil {
		return nil, fmt.Errorf("updating ConfigMap %s: %w", dnsName, err)
	}
	hash := sha256.Sum256([]byte(corefile))
	want := hex.EncodeToString(hash[:8])
	if err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		deployments := client.AppsV1().Deployments(dnsNamespace)
		d, err := deployments.Get(ctx, dnsName, metav1.GetOptions{})
		if err != nil || d.Spec.Template.Annotations[corefileAnnotation] == want {
			return err
		}
		metav1.SetMetaDataAnnotation(&d.Spec.Template.ObjectMeta, corefileAnnotation, want)
		for i := range d.Spec.Template.Spec.Containers {
			// With the default of 10 s, a pod that is asked a moment too early delays the restart by that much.
			if probe := d.Spec.Template.Spec.Containers[i].ReadinessProbe; probe != nil {
				probe.PeriodSeconds = 1
			}
		}
		_, err = deployments.Update(ctx, d, metav1.UpdateOptions{})
		return err
	}); err != nil {
		return nil, fmt.Errorf("restarting Deployment %s: %w", dnsName, err)
	}
	err := poll.Until(ctx, pollInterval, settleTimeout, func(ctx context.Context) error {
		d, err := client.AppsV1().Deployments(dnsNamespace).Get(ctx, dnsName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		return rolledOut(d)
	})
	if err != nil {
		return nil, fmt.Errorf("waiting for Deployment %s: %w", dnsName, err)
	}
	return hostsOf(corefile), nil
}

func rolledOut(d *appsv1.Deployment) error {
	replicas := int32(1)
	if d.Spec.Replicas != nil {
		replicas = *d.Spec.Replicas
	}
	switch s := d.Status; {
	case s.ObservedGeneration < d.Generation:
		return errors.New("its change has not been seen yet")
	case s.UpdatedReplicas < replicas:
		return fmt.Errorf("%d of %d pods have the new configuration", s.UpdatedReplicas, replicas)
	case s.Replicas > s.UpdatedReplicas:
		return fmt.Errorf("%d pods with the old configuration still run", s.Replicas-s.UpdatedReplicas)
	case s.AvailableReplicas < replicas:
		return fmt.Errorf("%d of %d pods are available", s.AvailableReplicas, replicas)
	}
	return nil
}
