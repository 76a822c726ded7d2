// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/registry-cache/extension/test/testbed/poll"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

const (
	// serviceNetwork is the network of service addresses: kind's default.
	serviceNetwork = "10.96.0.0/16"
	// apiService is the address of the Service "kubernetes", the first one of the network.
	apiService = "10.96.0.1"
	// curlTimedOut is curl's exit code for a request that was not answered in time.
	curlTimedOut = 28
	// reachWait is how long pods and Services that are ready may take to be reached from everywhere.
	reachWait = 10 * time.Second
	// refusedWithin is the time in which a foreign name is refused. CoreDNS answers within milliseconds; a name server
	// that is asked and does not answer takes 5 s.
	refusedWithin = time.Second
)

// Verify proves that the cluster's network is what the tests rely on, with a pod of its own on every node for the time
// of the check, about ten seconds:
//
//   - all nodes are ready;
//   - every pod and every node reaches every pod, a Service, and the API server's Service;
//   - cluster names resolve in pods, and foreign names are refused at once;
//   - packets to a service address that nobody owns are not answered, neither to pods nor to nodes, and none of them is
//     seen outside of a node.
//
// The error joins what is not so of the first of these that fails. Only one verification of a cluster may run at a time.
func (c *Cluster) Verify(ctx context.Context, p *workspace.Progress) error {
	return p.Step(fmt.Sprintf("verifying the network of the cluster %q", c.name), func() (err error) {
		client, err := c.client()
		if err != nil {
			return err
		}
		containers, err := c.containers(ctx)
		if err != nil {
			return err
		}
		if _, err := waitForNodes(ctx, client, containers); err != nil {
			return err
		}
		nodes, err := c.Nodes(ctx)
		if err != nil {
			return err
		}
		defer func() {
			// The next run waits until it is gone, and removes what a cancelled one leaves.
			if ctx.Err() == nil {
				err = errors.Join(err, deleteChecks(ctx, client))
			}
		}()
		checks, err := c.deployChecks(ctx, client)
		if err != nil {
			return fmt.Errorf("running a pod on every node: %w", err)
		}
		if len(checks.pods) != len(nodes) {
			return fmt.Errorf("running a pod on every node: %d pods on %d nodes", len(checks.pods), len(nodes))
		}
		// Where pods are not reached, the later checks would only repeat that.
		for _, check := range []func() error{
			func() error { return checks.reachable(ctx, nodes) },
			func() error { return checks.names(ctx) },
			func() error { return checks.unownedService(ctx, nodes) },
		} {
			if err := check(); err != nil {
				return err
			}
		}
		return nil
	})
}

// target is something that a pod or a node must be able to get.
type target struct {
	what, url string
	// answers are the bodies that it may answer; the body does not matter if there are none.
	answers []string
}

// nameURL returns the URL at which a check pod reports the name of its node.
func nameURL(address string) string {
	return "http://" + net.JoinHostPort(address, strconv.Itoa(netcheckPort)) + "/name"
}

func (p *checkPods) targets() []target {
	var targets []target
	var names []string
	for _, pod := range p.pods {
		names = append(names, pod.Spec.NodeName)
		targets = append(targets, target{
			what:    "the pod on " + pod.Spec.NodeName,
			url:     nameURL(pod.Status.PodIP),
			answers: []string{pod.Spec.NodeName},
		})
	}
	return append(targets, target{
		what:    "the Service of all pods",
		url:     nameURL(p.service),
		answers: names,
	})
}

func (t target) check(from, body string, err error) error {
	if err != nil {
		return fmt.Errorf("%s does not reach %s: %w", from, t.what, err)
	}
	// Somebody outside may answer as well, so it matters who did.
	if len(t.answers) > 0 && !slices.Contains(t.answers, body) {
		return fmt.Errorf("%s asked %s at %s, and something else answered: %q", from, t.what, t.url, body)
	}
	return nil
}

func (p *checkPods) reachable(ctx context.Context, nodes []Node) error {
	targets := p.targets()
	fromPods := p.fromPods(func(pod corev1.Pod) error { return p.reaches(ctx, pod, targets) })
	targets = append(targets, target{what: "the API server's Service", url: "https://" + apiService + "/readyz", answers: []string{"ok"}})
	fromNodes := inParallel(nodes, func(node Node) error {
		return reaches(ctx, "node "+node.Name, targets, func(ctx context.Context, url string) (string, error) { return node.get(ctx, url) })
	})
	return errors.Join(fromPods, fromNodes)
}

func (p *checkPods) reaches(ctx context.Context, pod corev1.Pod, targets []target) error {
	return reaches(ctx, "the pod on "+pod.Spec.NodeName, targets, func(ctx context.Context, url string) (string, error) {
		return p.ask(ctx, pod, "get", map[string]string{"url": url})
	})
}

// reaches waits until each target answers, one after the other: kube-proxy learns of a new Service on its own on each
// node.
func reaches(ctx context.Context, from string, targets []target, get func(ctx context.Context, url string) (string, error)) error {
	return poll.Until(ctx, pollInterval, reachWait, func(ctx context.Context) error {
		for _, target := range targets {
			body, err := get(ctx, target.url)
			if err := target.check(from, body, err); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p *checkPods) names(ctx context.Context) error {
	return p.fromPods(func(pod corev1.Pod) error {
		var errs []error
		for name, want := range map[string]string{
			"kubernetes.default.svc.cluster.local": apiService,
			netcheck + "." + netcheck + ".svc":     p.service,
		} {
			got, err := p.ask(ctx, pod, "lookup", map[string]string{"name": name})
			if err == nil && got != want {
				err = fmt.Errorf("the pod on %s: %s resolves to %q, want %q", pod.Spec.NodeName, name, got, want)
			}
			errs = append(errs, err)
		}
		start := time.Now()
		got, err := p.ask(ctx, pod, "lookup", map[string]string{"name": "name-of-nobody.invalid."})
		if err == nil {
			errs = append(errs, fmt.Errorf("the pod on %s: a name outside of the cluster resolves to %q", pod.Spec.NodeName, got))
		} else if took := time.Since(start); took > refusedWithin {
			errs = append(errs, fmt.Errorf("the pod on %s: a name outside of the cluster is refused after %s, so somebody was asked: %w", pod.Spec.NodeName, took, err))
		}
		return errors.Join(errs...)
	})
}

// unownedService checks what happens to packets to a service address without a Service.
func (p *checkPods) unownedService(ctx context.Context, nodes []Node) error {
	address, err := unownedAddress(ctx, p.client)
	if err != nil {
		return err
	}
	captures := make([]*capture, len(nodes))
	for i, node := range nodes {
		if captures[i], err = startCapture(ctx, node, netip.MustParsePrefix(serviceNetwork)); err != nil {
			return fmt.Errorf("capturing the packets of node %s: %w", node.Name, err)
		}
		defer captures[i].stop() //nolint:errcheck // matters only after an error; the counts are read after another stop
	}
	url := "http://" + address + "/"
	errs := []error{
		inParallel(nodes, func(node Node) error {
			_, err := node.get(ctx, url)
			if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == curlTimedOut {
				return nil
			}
			return fmt.Errorf("node %s asked the unowned service address %s: want no answer, got: %w", node.Name, address, orAnswered(err))
		}),
		p.fromPods(func(pod corev1.Pod) error {
			_, err := p.ask(ctx, pod, "get", map[string]string{"url": url})
			if err != nil && strings.Contains(err.Error(), "Client.Timeout exceeded") {
				return nil
			}
			return fmt.Errorf("the pod on %s asked the unowned service address %s: want no answer, got: %w", pod.Spec.NodeName, address, orAnswered(err))
		}),
		// Packets between pods are the sign that the captures see something. What asks through the API server makes
		// some as well, but not on every node.
		p.fromPods(func(pod corev1.Pod) error { return p.reaches(ctx, pod, p.targets()) }),
	}
	for i, node := range nodes {
		if err := captures[i].stop(); err != nil {
			errs = append(errs, fmt.Errorf("capturing the packets of node %s: %w", node.Name, err))
			continue
		}
		if left := captures[i].toServices; left > 0 {
			errs = append(errs, fmt.Errorf("%d packets to service addresses have left node %s", left, node.Name))
		}
		if len(nodes) > 1 && captures[i].betweenPods == 0 {
			errs = append(errs, fmt.Errorf("the capture of node %s has not seen a packet between pods, so it proves nothing", node.Name))
		}
	}
	return errors.Join(errs...)
}

func orAnswered(err error) error {
	if err == nil {
		return errors.New("an answer")
	}
	return err
}

func (p *checkPods) fromPods(check func(corev1.Pod) error) error { return inParallel(p.pods, check) }

// inParallel calls check for all items at once and joins the errors in the order of the items.
func inParallel[T any](items []T, check func(T) error) error {
	errs := make([]error, len(items))
	var all sync.WaitGroup
	for i, item := range items {
		all.Go(func() { errs[i] = check(item) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// unownedAddress returns the highest address of the service network that no Service has.
func unownedAddress(ctx context.Context, client kubernetes.Interface) (string, error) {
	services, err := client.CoreV1().Services(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	owned := func(address string) bool {
		return slices.ContainsFunc(services.Items, func(s corev1.Service) bool { return slices.Contains(s.Spec.ClusterIPs, address) })
	}
	for last := 254; last > 0; last-- {
		if address := "10.96.255." + strconv.Itoa(last); !owned(address) {
			return address, nil
		}
	}
	return "", fmt.Errorf("no free address at the end of %s", serviceNetwork)
}
