package kindcluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/registry-cache/extension/test/testbed/workspace"
)

const (
	// serviceNetwork is the network of service addresses: kind's default.
	serviceNetwork = "10.96.0.0/16"
	// apiService is the address of the Service "kubernetes", the first one of the network.
	apiService = "10.96.0.1"
	// curlTimedOut is curl's exit code for a request that was not answered in time.
	curlTimedOut = 28
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
// The error joins everything that is not so.
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
			// The next run removes what a cancelled one leaves.
			if ctx.Err() == nil {
				err = errors.Join(err, removeChecks(ctx, client))
			}
		}()
		checks, err := c.deployChecks(ctx, client)
		if err != nil {
			return fmt.Errorf("running a pod on every node: %w", err)
		}
		if len(checks.pods) != len(nodes) {
			return fmt.Errorf("running a pod on every node: %d pods on %d nodes", len(checks.pods), len(nodes))
		}
		return errors.Join(
			checks.reachable(ctx, nodes),
			checks.names(ctx),
			checks.unownedService(ctx, nodes),
		)
	})
}

// target is something that a pod or a node must be able to get.
type target struct {
	what, url string
	// answers are the bodies that it may answer; the body does not matter if there are none.
	answers []string
}

func (p *checkPods) targets() []target {
	var targets []target
	var names []string
	for _, pod := range p.pods {
		names = append(names, pod.Spec.NodeName)
		targets = append(targets, target{
			what:    "the pod on " + pod.Spec.NodeName,
			url:     fmt.Sprintf("http://%s:%d/name", pod.Status.PodIP, netcheckPort),
			answers: []string{pod.Spec.NodeName},
		})
	}
	return append(targets, target{
		what:    "the Service of all pods",
		url:     fmt.Sprintf("http://%s:%d/name", p.service, netcheckPort),
		answers: names,
	})
}

func (t target) check(from, body string, err error) error {
	if err != nil {
		return fmt.Errorf("%s does not reach %s: %w", from, t.what, err)
	}
	// Somebody outside may answer as well, so it matters who did.
	if !slices.Contains(t.answers, body) {
		return fmt.Errorf("%s asked %s at %s, and something else answered: %q", from, t.what, t.url, body)
	}
	return nil
}

func (p *checkPods) reachable(ctx context.Context, nodes []Node) error {
	var errs []error
	for _, target := range p.targets() {
		for _, pod := range p.pods {
			body, err := p.ask(ctx, pod, "get", map[string]string{"url": target.url})
			errs = append(errs, target.check("the pod on "+pod.Spec.NodeName, body, err))
		}
		for _, node := range nodes {
			body, err := node.Run(ctx, nil, "curl", "--silent", "--show-error", "--max-time", "2", target.url)
			errs = append(errs, target.check("node "+node.Name, string(body), err))
		}
	}
	for _, node := range nodes {
		if _, err := node.Run(ctx, nil, "curl", "--silent", "--show-error", "--insecure", "--max-time", "2", "https://"+apiService+"/readyz"); err != nil {
			errs = append(errs, fmt.Errorf("node %s does not reach the Service of the API server: %w", node.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (p *checkPods) names(ctx context.Context) error {
	var errs []error
	for _, pod := range p.pods {
		for name, want := range map[string]string{
			"kubernetes.default.svc.cluster.local":           apiService,
			netcheck + "." + netcheck + ".svc":               p.service,
			netcheck + "." + netcheck + ".svc.cluster.local": p.service,
		} {
			got, err := p.ask(ctx, pod, "lookup", map[string]string{"name": name})
			if err == nil && got != want {
				err = fmt.Errorf("pod on node %s: %s resolves to %q, want %q", pod.Spec.NodeName, name, got, want)
			}
			errs = append(errs, err)
		}
		start := time.Now()
		if got, err := p.ask(ctx, pod, "lookup", map[string]string{"name": "name-of-nobody.invalid."}); err == nil {
			errs = append(errs, fmt.Errorf("pod on node %s: a name outside of the cluster resolves to %q", pod.Spec.NodeName, got))
		} else if took := time.Since(start); took > time.Second {
			errs = append(errs, fmt.Errorf("pod on node %s: a name outside of the cluster is refused after %s: somebody was asked", pod.Spec.NodeName, took))
		}
	}
	return errors.Join(errs...)
}

// unownedService checks what happens to packets to a service address without a Service.
func (p *checkPods) unownedService(ctx context.Context, nodes []Node) error {
	address, err := unownedAddress(ctx, p.client)
	if err != nil {
		return err
	}
	var errs []error
	captures := make([]*capture, len(nodes))
	for i, node := range nodes {
		if captures[i], err = startCapture(ctx, node, netip.MustParsePrefix(serviceNetwork)); err != nil {
			return fmt.Errorf("capturing the packets of node %s: %w", node.Name, err)
		}
		defer func() { _ = captures[i].socket.Close() }()
	}
	url := "http://" + address + "/"
	for _, node := range nodes {
		_, err := node.Run(ctx, nil, "curl", "--silent", "--show-error", "--max-time", "1.5", url)
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != curlTimedOut {
			errs = append(errs, fmt.Errorf("node %s asked the unowned service address %s: want no answer, got: %w", node.Name, address, orAnswered(err)))
		}
	}
	for _, pod := range p.pods {
		_, err := p.ask(ctx, pod, "get", map[string]string{"url": url})
		if err == nil || !strings.Contains(err.Error(), "Client.Timeout exceeded") {
			errs = append(errs, fmt.Errorf("pod on node %s asked the unowned service address %s: want no answer, got: %w", pod.Spec.NodeName, address, orAnswered(err)))
		}
	}
	// Traffic between the pods of different nodes is the sign that the captures see something.
	for _, target := range p.targets() {
		for _, pod := range p.pods {
			body, err := p.ask(ctx, pod, "get", map[string]string{"url": target.url})
			errs = append(errs, target.check("the pod on "+pod.Spec.NodeName, body, err))
		}
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
