// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/registry-cache/extension/hack/ociimage"
	"github.com/registry-cache/extension/test/testbed/host"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// nodeImageVariable names a node image in the engine's storage, of which TestCluster makes a cluster of its own.
const nodeImageVariable = "TESTBED_NODE_IMAGE"

const testCluster = "registry-cache-test"

// TestCluster takes a cluster through its life: made after an interrupted attempt, used, broken, repaired, restarted,
// removed. It needs root, a node image, 3 GB of memory and three minutes on two idle cores.
func TestCluster(t *testing.T) {
	image := os.Getenv(nodeImageVariable)
	if image == "" {
		t.Skipf("makes a kind cluster: set %s to the reference of a node image", nodeImageVariable)
	}
	ctx := t.Context()
	progress := workspace.NewProgress(t.Output())
	engine, err := host.Prepare(ctx, progress)
	if err != nil {
		t.Fatal(err)
	}
	options := Options{Name: testCluster, NodeImage: image, Kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	t.Cleanup(func() {
		// The test's own context has ended.
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := Delete(ctx, engine, progress, options); err != nil {
			t.Error(err)
		}
	})
	ensure := func(t *testing.T, o Options) *Cluster {
		t.Helper()
		c, err := Ensure(t.Context(), engine, progress, o)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}

	step(t, "an interrupted creation leaves nothing", func(t *testing.T) {
		interrupted := errors.New("interrupted")
		ctx, cancel := context.WithTimeoutCause(ctx, 8*time.Second, interrupted)
		defer cancel()
		if _, err := Ensure(ctx, engine, progress, options); !errors.Is(err, interrupted) {
			t.Errorf("got %v, want %v", err, interrupted)
		}
		mustBeGone(t, engine, options)
	})
	step(t, "a creation that was killed is repeated", func(t *testing.T) {
		// A killed run leaves containers and no record; here it is one container that does not even run.
		volume := engineRun(t, engine, "volume", "create", "--label", testCluster+"-worker2=true")
		engineRun(t, engine, "create", "--name", testCluster+"-worker", "--label", clusterLabel+"="+testCluster,
			"--label", roleLabel+"="+Worker, "--entrypoint", "/bin/sleep", "--volume", volume+":/var", image, "infinity")
		ensure(t, options)
	})
	cluster, err := Open(ctx, engine, options)
	if err != nil {
		t.Fatal(err)
	}
	verify := func(t *testing.T) {
		t.Helper()
		if err := cluster.Verify(t.Context(), progress); err != nil {
			t.Fatal(err)
		}
	}
	nodes := func(t *testing.T) []Node {
		t.Helper()
		nodes, err := cluster.Nodes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return nodes
	}

	step(t, "the network does what it promises", verify)
	step(t, "another cluster is not made in its place", func(t *testing.T) {
		o := options
		o.Workers = 3
		if _, err := Ensure(ctx, engine, progress, o); err == nil || !strings.Contains(err.Error(), "workers 2, and 3 is wanted") {
			t.Errorf("got %v", err)
		}
	})
	step(t, "a cancelled check leaves the cluster alone", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := Ensure(ctx, engine, progress, options); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
		}
		if got := len(nodes(t)); got != 3 {
			t.Errorf("%d nodes, want 3", got)
		}
	})
	step(t, "images are loaded once", func(t *testing.T) { loadImages(t, cluster, nodes(t)) })
	step(t, "host names and roots", func(t *testing.T) {
		if err := cluster.SetHosts(ctx, map[string][]string{"10.89.255.1": {"registry.example.com"}}); err != nil {
			t.Fatal(err)
		}
		mustResolve(t, nodes(t), "registry.example.com", "10.89.255.1")
		started := containerdStarts(t, nodes(t))
		root := certificate(t)
		for range 2 {
			if err := cluster.TrustCA(ctx, "test", root); err != nil {
				t.Fatal(err)
			}
		}
		once := containerdStarts(t, nodes(t))
		for node, at := range once {
			if started[node] == at {
				t.Errorf("containerd of node %s has not read the new roots", node)
			}
		}
		if err := cluster.TrustCA(ctx, "test", root); err != nil {
			t.Fatal(err)
		}
		if again := containerdStarts(t, nodes(t)); fmt.Sprint(again) != fmt.Sprint(once) {
			t.Errorf("containerd was restarted for known roots: %v, then %v", once, again)
		}
	})
	step(t, "a worker joins and leaves", func(t *testing.T) {
		added, err := cluster.AddWorker(ctx, progress)
		if err != nil {
			t.Fatal(err)
		}
		if want := testCluster + "-worker3"; added.Name != want || len(nodes(t)) != 4 {
			t.Errorf("%s has joined as one of %d, want %s as one of 4", added.Name, len(nodes(t)), want)
		}
		verify(t)
		for range 2 { // what does not exist is no error
			if err := cluster.RemoveWorker(ctx, progress, added); err != nil {
				t.Fatal(err)
			}
		}
		mustKnow(t, cluster, nodes(t), 3)
		if err := cluster.RemoveWorker(ctx, progress, nodes(t)[1]); err == nil || !strings.Contains(err.Error(), "as it was made") {
			t.Errorf("removing a worker that was not added: %v", err)
		}
	})
	step(t, "a worker that an interrupted run has added is removed", func(t *testing.T) {
		if _, err := cluster.AddWorker(ctx, progress); err != nil {
			t.Fatal(err)
		}
		ensure(t, options)
		mustKnow(t, cluster, nodes(t), 3)
		verify(t)
	})
	step(t, "Verify sees what is broken, and Ensure repairs it", func(t *testing.T) {
		all := nodes(t)
		nodeRun(t, all[1], "ip", "link", "delete", "testbed")
		if err := cluster.Verify(ctx, progress); err == nil || !strings.Contains(err.Error(), "does not reach the pod on "+all[1].Name) {
			t.Errorf("without the device of the pod network: %v", err)
		}
		nodeRun(t, all[1], "nft", "delete", "table", "inet", "testbed")
		if err := os.Remove(options.Kubeconfig); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		ensure(t, Options{Name: options.Name, Kubeconfig: options.Kubeconfig})
		t.Logf("repaired in %s", time.Since(start))
		verify(t)
	})
	step(t, "Verify sees packets that leave a node", func(t *testing.T) {
		all := nodes(t)
		nodeRun(t, all[1], "nft", "delete", "table", "inet", "testbed")
		// Nothing may really leave: the route takes the place of the default route for service addresses alone, and
		// ends at a node that does not forward to anywhere.
		nodeRun(t, all[1], "ip", "route", "replace", serviceNetwork, "via", all[2].IP)
		if err := cluster.Verify(ctx, progress); err == nil || !strings.Contains(err.Error(), "have left node "+all[1].Name) {
			t.Errorf("without the guard: %v", err)
		}
		nodeRun(t, all[1], "ip", "route", "delete", serviceNetwork)
		ensure(t, options)
		verify(t)
	})
	step(t, "a restart in another order, with other addresses", func(t *testing.T) {
		all := nodes(t)
		before := addresses(all)
		for _, node := range all {
			engineRun(t, engine, "kill", node.Name)
		}
		for _, node := range slices.Backward(all) {
			engineRun(t, engine, "start", node.Name)
		}
		ensure(t, options)
		t.Logf("addresses before: %v, after: %v", before, addresses(nodes(t)))
		mustResolve(t, nodes(t), "registry.example.com", "10.89.255.1")
		verify(t)
	})
	step(t, "a lost node has the cluster made anew", func(t *testing.T) {
		engineRun(t, engine, "rm", "--force", "--volumes", testCluster+"-worker2")
		ensure(t, Options{Name: options.Name, Kubeconfig: options.Kubeconfig})
		if got := len(nodes(t)); got != 3 {
			t.Errorf("%d nodes, want 3", got)
		}
	})
	step(t, "the end leaves nothing", func(t *testing.T) {
		loop := strings.TrimSpace(string(nodeRun(t, nodes(t)[1], "sh", "-c",
			"truncate -s 1M /var/lib/left.img && losetup --find --show /var/lib/left.img")))
		for range 2 { // what does not exist is no error
			if err := Delete(ctx, engine, progress, options); err != nil {
				t.Fatal(err)
			}
		}
		mustBeGone(t, engine, options)
		backing, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(loop), "loop/backing_file"))
		if err == nil && strings.Contains(string(backing), "/left.img") {
			t.Errorf("%s is still attached to %s", loop, backing)
		}
		if _, err := Open(ctx, engine, options); err == nil {
			t.Error("a removed cluster was opened")
		}
	})
}

// mustKnow expects as many containers of nodes, nodes in the API, and volumes.
func mustKnow(t *testing.T, c *Cluster, nodes []Node, want int) {
	t.Helper()
	client, err := c.client()
	if err != nil {
		t.Fatal(err)
	}
	known, err := client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	volumes, err := c.volumes(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(nodes) != want || len(known.Items) != want || c.engine.Name == host.Podman && len(volumes) != want {
		t.Errorf("%d containers, %d nodes in the API and %d volumes, want %d of each", len(nodes), len(known.Items), len(volumes), want)
	}
}

// step runs a part of the test and ends the test if it failed: the next ones build on it.
func step(t *testing.T, name string, do func(t *testing.T)) {
	t.Helper()
	if !t.Run(name, do) {
		t.FailNow()
	}
}

func engineRun(t *testing.T, e *host.Engine, args ...string) string {
	t.Helper()
	out, err := e.Run(t.Context(), nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func nodeRun(t *testing.T, node Node, args ...string) []byte {
	t.Helper()
	out, err := node.Run(t.Context(), nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func addresses(nodes []Node) []string {
	var all []string
	for _, node := range nodes {
		all = append(all, node.Name+"="+node.IP)
	}
	return all
}

func mustResolve(t *testing.T, nodes []Node, name, ip string) {
	t.Helper()
	for _, node := range nodes {
		if out := string(nodeRun(t, node, "getent", "hosts", name)); !strings.HasPrefix(out, ip+" ") {
			t.Errorf("node %s: %s resolves to %q, want %s", node.Name, name, out, ip)
		}
	}
}

// containerdStarts returns when containerd was started, by node.
func containerdStarts(t *testing.T, nodes []Node) map[string]string {
	t.Helper()
	starts := map[string]string{}
	for _, node := range nodes {
		starts[node.Name] = strings.TrimSpace(string(nodeRun(t, node, "systemctl", "show", "containerd", "--property", "ExecMainStartTimestampMonotonic")))
	}
	return starts
}

// loadImages loads two builds under one name, one after the other: the second must replace the first.
func loadImages(t *testing.T, cluster *Cluster, nodes []Node) {
	const reference = "registry-cache.testbed/loaded:v1"
	for _, content := range []string{"first", "second"} {
		image, err := ociimage.Build(ociimage.Config{Files: []ociimage.File{{Path: "/content", Content: []byte(content)}}})
		if err != nil {
			t.Fatal(err)
		}
		archive := filepath.Join(t.TempDir(), "image.tar")
		if err := ociimage.WriteArchive(archive, map[string]v1.Image{reference: image}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			start := time.Now()
			if err := cluster.LoadArchive(t.Context(), archive); err != nil {
				t.Fatal(err)
			}
			t.Logf("loaded in %s", time.Since(start))
		}
		config, err := image.ConfigName()
		if err != nil {
			t.Fatal(err)
		}
		for _, node := range nodes {
			if has, err := node.hasImages(t.Context(), map[string]v1.Hash{reference: config}); err != nil || !has {
				t.Errorf("node %s has the %s build: %t, %v", node.Name, content, has, err)
			}
		}
	}
}

// mustBeGone checks that the engine has nothing of the cluster. The network may stay, if another cluster uses it.
func mustBeGone(t *testing.T, e *host.Engine, o Options) {
	t.Helper()
	if left := engineRun(t, e, "ps", "--all", "--quiet", "--filter", "label="+clusterLabel+"="+o.Name); left != "" {
		t.Errorf("containers are left: %s", left)
	}
	if left := labelledVolumes(engineRun(t, e, "volume", "ls", "--format", "{{.Name}}\t{{.Labels}}"), o.Name); len(left) > 0 {
		t.Errorf("volumes are left: %v", left)
	}
	if slices.Contains(strings.Fields(engineRun(t, e, "network", "ls", "--format", "{{.Name}}")), network) &&
		engineRun(t, e, "ps", "--all", "--quiet", "--filter", "network="+network) == "" {
		t.Errorf("network %s is left, and nothing uses it", network)
	}
	if _, err := os.Stat(o.Kubeconfig); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("kubeconfig: %v, want that it does not exist", err)
	}
}
