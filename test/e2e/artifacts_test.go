// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
)

const (
	collectTimeout = time.Minute
	// maxLog bounds what is kept of one container's log, in bytes.
	maxLog = 4 << 20
)

// watched says that every spec is followed by what collects its artifacts.
var watched bool

var _ = AfterSuite(func() {
	// A failed spec without artifacts cannot be understood, and what collects them runs seldom.
	Expect(watched || tb == nil).To(BeTrue(), "nothing collects artifacts")
})

var _ = JustAfterEach(func(ctx context.Context) {
	watched = true
	report := CurrentSpecReport()
	if !report.Failed() || tb == nil {
		return
	}
	dir := filepath.Join("artifacts", strings.Map(fileRune, report.FullText()))
	if err := os.RemoveAll(dir); err != nil {
		AddReportEntry("artifacts", err.Error())
		return
	}
	a := artifacts{dir: dir}
	a.nodes(ctx)
	a.upstreamLog(ctx)
	a.objects(ctx)
	a.podLogs(ctx)
	AddReportEntry("artifacts", dir+"\n"+strings.Join(a.problems, "\n"))
}, NodeTimeout(collectTimeout))

// artifacts collects what explains a failure. What cannot be collected is listed instead of failing: the spec's own
// failure must stay the first thing to see.
type artifacts struct {
	dir      string
	problems []string
}

func (a *artifacts) save(name string, content []byte, err error) {
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

func (a *artifacts) nodes(ctx context.Context) {
	for name, command := range map[string][]string{
		"journal-containerd.log":          {"journalctl", "--no-pager", "--lines=3000", "--unit=containerd"},
		"journal-kubelet.log":             {"journalctl", "--no-pager", "--lines=3000", "--unit=kubelet"},
		"journal-gardener-node-agent.log": {"journalctl", "--no-pager", "--lines=3000", "--unit=gardener-node-agent"},
		"journal-registries.log":          {"journalctl", "--no-pager", "--lines=3000", "--unit=configure-containerd-registries"},
		"hosts.toml.txt":                  {"find", "/etc/containerd/certs.d", "/var/lib/registry-cache", "-type", "f", "-print", "-exec", "cat", "{}", ";"},
		"mounts.txt":                      {"findmnt", "--types", "xfs", "--output", "SOURCE,TARGET,SIZE,USED"},
		"images.txt":                      {"ctr", "--namespace", "k8s.io", "images", "ls"},
		"volumes.txt":                     {"find", "/var/lib/kubelet/pods", "-path", "*/volumes/kubernetes.io~csi/*", "-printf", "%12s %TY-%Tm-%Td %TT %p\n"},
		"nftables.txt":                    {"nft", "list", "ruleset", "inet"},
	} {
		for _, node := range nodes {
			out, err := node.Run(ctx, nil, command...)
			a.save(filepath.Join(node.Name, name), out, err)
		}
	}
}

func (a *artifacts) upstreamLog(ctx context.Context) {
	requests, err := tb.Upstream.Requests(ctx, 0)
	var lines []byte
	for _, request := range requests {
		line, err := json.Marshal(request)
		if err != nil {
			a.problems = append(a.problems, err.Error())
		}
		lines = append(append(lines, line...), '\n')
	}
	a.save("upstream-requests.jsonl", lines, err)

	faults, err := tb.Upstream.Faults(ctx)
	if err == nil {
		lines, err = json.MarshalIndent(faults, "", "  ")
	}
	a.save("upstream-faults.json", lines, err)
}

func (a *artifacts) objects(ctx context.Context) {
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
		if err := kube.List(ctx, list); err != nil {
			a.save(name, nil, err)
			continue
		}
		content, err := yaml.Marshal(list)
		a.save(name, content, err)
	}
}

func (a *artifacts) podLogs(ctx context.Context) {
	config, err := tb.Cluster.RESTConfig()
	if err != nil {
		a.save("pods", nil, err)
		return
	}
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		a.save("pods", nil, err)
		return
	}
	var pods corev1.PodList
	if err := kube.List(ctx, &pods); err != nil {
		a.save("pods", nil, err)
		return
	}
	for _, pod := range pods.Items {
		for _, status := range pod.Status.ContainerStatuses {
			name := filepath.Join("pods", pod.Namespace, pod.Name, status.Name)
			a.podLog(ctx, clients, pod, name+".log", corev1.PodLogOptions{Container: status.Name})
			if status.RestartCount > 0 {
				a.podLog(ctx, clients, pod, name+"-previous.log", corev1.PodLogOptions{Container: status.Name, Previous: true})
			}
		}
	}
}

func (a *artifacts) podLog(ctx context.Context, clients kubernetes.Interface, pod corev1.Pod, name string, options corev1.PodLogOptions) {
	options.LimitBytes = new(int64(maxLog))
	stream, err := clients.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &options).Stream(ctx)
	if err != nil {
		a.save(name, nil, err)
		return
	}
	content, err := io.ReadAll(io.LimitReader(stream, maxLog))
	a.save(name, content, errors.Join(err, stream.Close()))
}

// fileRune keeps what is safe in a file name everywhere.
func fileRune(r rune) rune {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '.':
		return r
	}
	return '_'
}
