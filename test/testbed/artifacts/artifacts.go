// SPDX-License-Identifier: Apache-2.0

// Package artifacts collects the state of a testbed that explains a failure: journals and files of the nodes, objects,
// logs of containers, and the request log of the upstream.
package artifacts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"

	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// maxLog bounds the collected log of one container, in bytes.
const maxLog = 4 << 20

// unit is the systemd unit that configures containerd on the nodes.
const unit = "configure-containerd-registries"

// Collect writes the state of the testbed to files in dir, which is created if necessary. It collects as much as possible
// and returns one line for each part that was not available, so that the failure itself stays the first error to see.
func Collect(ctx context.Context, cluster *kindcluster.Cluster, registry *upstream.Client, dir string) (problems []string) {
	a := &collection{dir: dir}
	a.nodes(ctx, cluster)
	a.upstreamLog(ctx, registry)
	clients, err := newClients(cluster)
	if err != nil {
		return append(a.problems, err.Error())
	}
	a.objects(ctx, clients)
	a.podLogs(ctx, clients)
	return a.problems
}

// clients are the two clients of one cluster: logs are not available in the client of controller-runtime.
type clients struct {
	objects client.Client
	logs    kubernetes.Interface
}

func newClients(cluster *kindcluster.Cluster) (clients, error) {
	config, err := cluster.RESTConfig()
	if err != nil {
		return clients{}, err
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientscheme.AddToScheme, gardencorev1beta1.AddToScheme, extensionsv1alpha1.AddToScheme, resourcesv1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return clients{}, err
		}
	}
	objects, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return clients{}, err
	}
	logs, err := kubernetes.NewForConfig(config)
	return clients{objects: objects, logs: logs}, err
}

// log returns at most maxLog bytes of the log of a container.
func (c clients) log(ctx context.Context, pod corev1.Pod, options corev1.PodLogOptions) ([]byte, error) {
	options.LimitBytes = new(int64(maxLog))
	stream, err := c.logs.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &options).Stream(ctx)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(stream, maxLog))
	return content, errors.Join(err, stream.Close())
}

// collection is the folder of one call of Collect.
type collection struct {
	dir      string
	problems []string
}

func (a *collection) save(name string, content []byte, err error) {
	if err != nil {
		a.problems = append(a.problems, fmt.Sprintf("%s: %v", name, err))
	}
	if len(content) == 0 {
		return
	}
	path := filepath.Join(a.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		a.problems = append(a.problems, err.Error())
	} else if err := os.WriteFile(path, content, 0o644); err != nil {
		a.problems = append(a.problems, err.Error())
	}
}

func (a *collection) nodes(ctx context.Context, cluster *kindcluster.Cluster) {
	nodes, err := cluster.Nodes(ctx)
	if err != nil {
		a.save("nodes", nil, err)
		return
	}
	for name, command := range map[string][]string{
		"journal-containerd.log":          {"journalctl", "--no-pager", "--lines=3000", "--unit=containerd"},
		"journal-kubelet.log":             {"journalctl", "--no-pager", "--lines=3000", "--unit=kubelet"},
		"journal-gardener-node-agent.log": {"journalctl", "--no-pager", "--lines=3000", "--unit=gardener-node-agent"},
		"journal-registries.log":          {"journalctl", "--no-pager", "--lines=3000", "--unit=" + unit},
		"hosts.toml.txt":                  {"find", "/etc/containerd/certs.d", "/var/lib/registry-cache", "-type", "f", "-print", "-exec", "cat", "{}", ";"},
		"mounts.txt":                      {"findmnt", "--types", "xfs", "--output", "SOURCE,TARGET,SIZE,USED"},
		"images.txt":                      {"ctr", "--namespace", "k8s.io", "images", "ls"},
		"volumes.txt":                     {"find", "/var/lib/kubelet/pods", "-path", "*/volumes/kubernetes.io~csi/*", "-printf", "%12s %TY-%Tm-%Td %TT %p\n"},
		"nftables.txt":                    {"nft", "list", "ruleset", "inet"},
		"pressure.txt":                    {"sh", "-c", "tail -n +1 /proc/pressure/*; uptime"},
	} {
		for _, node := range nodes {
			out, err := node.Run(ctx, nil, command...)
			a.save(filepath.Join(node.Name, name), out, err)
		}
	}
}

func (a *collection) upstreamLog(ctx context.Context, registry *upstream.Client) {
	requests, err := registry.Requests(ctx, 0)
	var lines []byte
	for _, request := range requests {
		line, err := json.Marshal(request)
		if err != nil {
			a.problems = append(a.problems, err.Error())
		}
		lines = append(append(lines, line...), '\n')
	}
	a.save("upstream-requests.jsonl", lines, err)

	faults, err := registry.Faults(ctx)
	if err != nil {
		a.save("upstream-faults.json", nil, err)
		return
	}
	content, err := json.MarshalIndent(faults, "", "  ")
	a.save("upstream-faults.json", content, err)
}

func (a *collection) objects(ctx context.Context, c clients) {
	for name, list := range map[string]client.ObjectList{
		"events.yaml":                 &corev1.EventList{},
		"pods.yaml":                   &corev1.PodList{},
		"nodes.yaml":                  &corev1.NodeList{},
		"statefulsets.yaml":           &appsv1.StatefulSetList{},
		"services.yaml":               &corev1.ServiceList{},
		"persistentvolumeclaims.yaml": &corev1.PersistentVolumeClaimList{},
		"shoots.yaml":                 &gardencorev1beta1.ShootList{},
		"extensions.yaml":             &extensionsv1alpha1.ExtensionList{},
		"managedresources.yaml":       &resourcesv1alpha1.ManagedResourceList{},
	} {
		if err := c.objects.List(ctx, list); err != nil {
			a.save(name, nil, err)
			continue
		}
		content, err := yaml.Marshal(list)
		a.save(name, content, err)
	}
}

func (a *collection) podLogs(ctx context.Context, c clients) {
	var pods corev1.PodList
	if err := c.objects.List(ctx, &pods); err != nil {
		a.save("pods", nil, err)
		return
	}
	for _, pod := range pods.Items {
		for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
			name := filepath.Join("pods", pod.Namespace, pod.Name, status.Name)
			content, err := c.log(ctx, pod, corev1.PodLogOptions{Container: status.Name})
			a.save(name+".log", content, err)
			if status.RestartCount > 0 {
				content, err := c.log(ctx, pod, corev1.PodLogOptions{Container: status.Name, Previous: true})
				a.save(name+"-previous.log", content, err)
			}
		}
	}
}
