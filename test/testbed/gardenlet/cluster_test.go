// SPDX-License-Identifier: Apache-2.0

package gardenlet_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"github.com/gardener/gardener/pkg/client/kubernetes"
	"github.com/gardener/gardener/pkg/utils/managedresources"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed/gardener"
	"github.com/registry-cache/extension/test/testbed/gardenlet"
	"github.com/registry-cache/extension/test/testbed/host"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/poll"
	"github.com/registry-cache/extension/test/testbed/shoot"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// clusterVariable names the kind cluster for the test that needs one. It must have no Shoot, and has none afterwards.
const clusterVariable = "TESTBED_CLUSTER"

const bare = `apiVersion: core.gardener.cloud/v1beta1
kind: Shoot
metadata:
  name: bare
  namespace: garden-dev
`

// TestNodesOfACluster proves on a real cluster what the others take for granted: that gardener-resource-manager and
// gardener-node-agent do what they are there for, and that the nodes go on working with what the agent makes of
// containerd's configuration.
func TestNodesOfACluster(t *testing.T) {
	name := os.Getenv(clusterVariable)
	if name == "" {
		t.Skipf("set %s to the name of a kind cluster without a Shoot to run this test as root", clusterVariable)
	}
	ctx := t.Context()
	progress := workspace.NewProgress(t.Output())
	engine, err := host.Prepare(ctx, progress)
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := kindcluster.Open(ctx, engine, kindcluster.Options{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	if err := gardener.Install(ctx, cluster, progress); err != nil {
		t.Fatal(err)
	}
	nodes, err := cluster.Nodes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	config, err := cluster.RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(config, client.Options{Scheme: gardenlet.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	settings, err := gardener.ReadContainerd(ctx, nodes[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := shoot.Apply(ctx, cluster, progress, []byte(bare)); err != nil {
		t.Fatal(err)
	}
	deleted := false
	t.Cleanup(func() {
		if deleted {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		if err := shoot.Delete(ctx, cluster, progress, []byte(bare)); err != nil {
			t.Error(err)
		}
	})
	stored := &gardencorev1beta1.Shoot{}
	if err := c.Get(ctx, client.ObjectKey{Namespace: "garden-dev", Name: "bare"}, stored); err != nil {
		t.Fatal(err)
	}
	namespace := stored.Status.TechnicalID

	t.Run("containerd keeps the settings of the node", func(t *testing.T) {
		for _, node := range nodes {
			kept, err := gardener.ReadContainerd(ctx, node)
			if err != nil {
				t.Fatal(err)
			}
			if kept != settings {
				t.Errorf("node %s has %+v, want %+v", node.Name, kept, settings)
			}
			dump, err := node.Run(ctx, nil, "containerd", "config", "dump")
			if err != nil {
				t.Fatal(err)
			}
			for _, setting := range []string{"config_path = '/etc/containerd/certs.d'", "conf_template = '/etc/containerd/cni.conflist.tmpl'"} {
				if !strings.Contains(string(dump), setting) {
					t.Errorf("node %s has lost %s", node.Name, setting)
				}
			}
		}
	})

	t.Run("new pods start on every node", func(t *testing.T) {
		for _, node := range nodes {
			pod := &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "on-" + node.Name},
				Spec: corev1.PodSpec{
					NodeName:                      node.Name,
					TerminationGracePeriodSeconds: new(int64(0)),
					Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
					Containers:                    []corev1.Container{{Name: "pause", Image: settings.SandboxImage, ImagePullPolicy: corev1.PullNever}},
				},
			}
			if err := c.Create(ctx, pod); err != nil {
				t.Fatal(err)
			}
			if err := poll.Until(ctx, 500*time.Millisecond, time.Minute, func(ctx context.Context) error {
				if err := c.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
					return err
				}
				if pod.Status.Phase != corev1.PodRunning || pod.Status.PodIP == "" {
					return fmt.Errorf("pod %s is %s with address %q: %v", pod.Name, pod.Status.Phase, pod.Status.PodIP, pod.Status.Conditions)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		}
	})

	t.Run("a ManagedResource is reconciled and repaired", func(t *testing.T) {
		configMap := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "testbed-probe"}, Data: map[string]string{"a": "b"}}
		data, err := managedresources.NewRegistry(kubernetes.ShootScheme, kubernetes.ShootCodec, kubernetes.ShootSerializer).AddAllAndSerialize(configMap)
		if err != nil {
			t.Fatal(err)
		}
		if err := managedresources.CreateForShoot(ctx, c, namespace, "probe", "test", false, data); err != nil {
			t.Fatal(err)
		}
		waitCtx, cancel := context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
		if err := managedresources.WaitUntilHealthy(waitCtx, c, namespace, "probe"); err != nil {
			t.Fatal(err)
		}
		if err := c.Delete(ctx, configMap.DeepCopy()); err != nil {
			t.Fatal(err)
		}
		if err := poll.Until(ctx, 50*time.Millisecond, 20*time.Second, func(ctx context.Context) error {
			return c.Get(ctx, client.ObjectKeyFromObject(configMap), &corev1.ConfigMap{})
		}); err != nil {
			t.Errorf("the deleted object did not come back: %v", err)
		}
		if err := managedresources.Delete(ctx, c, namespace, "probe", true); err != nil {
			t.Fatal(err)
		}
		if err := managedresources.WaitUntilDeleted(waitCtx, c, namespace, "probe"); err != nil {
			t.Error(err)
		}
	})

	t.Run("an invalid OperatingSystemConfig is refused", func(t *testing.T) {
		osc := gardenlet.OperatingSystemConfig(stored)
		if err := c.Get(ctx, client.ObjectKeyFromObject(osc), osc); err != nil {
			t.Fatal(err)
		}
		osc.Spec.Files = []extensionsv1alpha1.File{{Path: "", Content: extensionsv1alpha1.FileContent{Inline: &extensionsv1alpha1.FileContentInline{}}}}
		if err := c.Update(ctx, osc); err == nil || !strings.Contains(err.Error(), "spec.files[0].path") {
			t.Errorf("error is %v, want the field of Gardener's validation", err)
		}
	})

	const file, unit = "/var/lib/testbed-probe/file", "testbed-probe.service"
	t.Run("the agents apply a file and a unit", func(t *testing.T) {
		osc := gardenlet.OperatingSystemConfig(stored)
		if err := c.Get(ctx, client.ObjectKeyFromObject(osc), osc); err != nil {
			t.Fatal(err)
		}
		osc.Spec.Files = []extensionsv1alpha1.File{{
			Path:        file,
			Permissions: new(uint32(0o640)),
			Content:     extensionsv1alpha1.FileContent{Inline: &extensionsv1alpha1.FileContentInline{Data: "from the OperatingSystemConfig"}},
		}}
		osc.Spec.Units = []extensionsv1alpha1.Unit{{
			Name:      unit,
			Enable:    new(true),
			Command:   new(extensionsv1alpha1.CommandStart),
			Content:   new("[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"),
			FilePaths: []string{file},
		}}
		if err := c.Update(ctx, osc); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := gardenlet.ApplyToNodes(ctx, c, stored); err != nil {
			t.Fatal(err)
		}
		t.Logf("every node has applied it after %s", time.Since(start).Round(100*time.Millisecond))
		for _, node := range nodes {
			content, err := node.Run(ctx, nil, "cat", file)
			if err != nil || string(content) != "from the OperatingSystemConfig" {
				t.Errorf("file on node %s is %q, %v", node.Name, content, err)
			}
			if _, err := node.Run(ctx, nil, "systemctl", "is-active", unit); err != nil {
				t.Error(err)
			}
		}
	})

	t.Run("deletion leaves no trace", func(t *testing.T) {
		if err := shoot.Delete(ctx, cluster, progress, []byte(bare)); err != nil {
			t.Fatal(err)
		}
		deleted = true
		for _, node := range nodes {
			for _, path := range []string{file, "/etc/systemd/system/" + unit} {
				if _, err := node.Run(ctx, nil, "test", "!", "-e", path); err != nil {
					t.Errorf("%s is still on node %s: %v", path, node.Name, err)
				}
			}
			if _, err := node.Run(ctx, nil, "systemctl", "is-active", unit); err == nil {
				t.Errorf("unit %s still runs on node %s", unit, node.Name)
			}
		}
		for _, object := range []client.Object{stored, &extensionsv1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: namespace}}} {
			if err := c.Get(ctx, client.ObjectKeyFromObject(object), object); !apierrors.IsNotFound(err) {
				t.Errorf("%T still exists: %v", object, err)
			}
		}
		if err := c.Get(ctx, client.ObjectKey{Name: namespace}, &corev1.Namespace{}); client.IgnoreNotFound(err) != nil || err == nil {
			t.Errorf("the namespace still exists: %v", err)
		}
	})
}
