// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	registryv1alpha3 "github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/shoot"
)

// shootOf returns a Shoot with the caches, a list in YAML, in the given version of the API.
func shootOf(version, caches string) []byte {
	return fmt.Appendf(nil, `
apiVersion: core.gardener.cloud/v1beta1
kind: Shoot
metadata:
  name: crazy-botany
  namespace: garden-dev
spec:
  extensions:
  - type: registry-cache
    providerConfig:
      apiVersion: registry.extensions.gardener.cloud/%s
      kind: RegistryConfig
      caches:
%s`, version, indent(caches, "      "))
}

func indent(text, by string) string {
	var lines []string
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		lines = append(lines, by+line)
	}
	return strings.Join(lines, "\n") + "\n"
}

// startShoot makes the Shoot, which does not have what an earlier run has left, waits until all nodes use its caches,
// and deletes it after the container.
func startShoot(ctx context.Context, manifest []byte) *shoot.Result {
	GinkgoHelper()
	Expect(shoot.Delete(ctx, tb.Cluster, progress, manifest)).To(Succeed())
	DeferCleanup(func(ctx context.Context) {
		Expect(shoot.Delete(ctx, tb.Cluster, progress, manifest)).To(Succeed())
	}, NodeTimeout(5*time.Minute))
	return applyShoot(ctx, manifest)
}

// applyShoot changes the Shoot and waits until all nodes use its caches.
func applyShoot(ctx context.Context, manifest []byte) *shoot.Result {
	GinkgoHelper()
	result, err := shoot.Apply(ctx, tb.Cluster, progress, manifest)
	Expect(err).NotTo(HaveOccurred())
	waitForCaches(ctx, result)
	return result
}

// waitForCaches waits until all nodes use the caches of the status.
func waitForCaches(ctx context.Context, result *shoot.Result) {
	GinkgoHelper()
	Expect(result.Status).NotTo(BeNil())
	for _, cache := range result.Status.Caches {
		for _, node := range nodes {
			Expect(pull.WaitForMirror(ctx, node, cache.Upstream)).To(Succeed())
		}
	}
}

// cachePod returns the pod of a cache.
func cachePod(ctx context.Context, upstreamHost string) *corev1.Pod {
	GinkgoHelper()
	pod := &corev1.Pod{}
	Expect(kube.Get(ctx, inKubeSystem(registryv1alpha3.ObjectName(upstreamHost)+"-0"), pod)).To(Succeed())
	return pod
}

// nodeOf returns the node that the pod is on, and the other worker.
func nodeOf(pod *corev1.Pod) (its, other kindcluster.Node) {
	GinkgoHelper()
	all := workers()
	i := slices.IndexFunc(all, func(node kindcluster.Node) bool { return node.Name == pod.Spec.NodeName })
	Expect(i).NotTo(BeNumerically("<", 0), "%s is on no worker", pod.Name)
	return all[i], all[(i+1)%len(all)]
}

// waitForReadyCache waits until a cache has a pod that is ready and another one than before, which may be empty.
func waitForReadyCache(ctx context.Context, upstreamHost string, before string) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		pod := &corev1.Pod{}
		g.Expect(kube.Get(ctx, inKubeSystem(registryv1alpha3.ObjectName(upstreamHost)+"-0"), pod)).To(Succeed())
		g.Expect(string(pod.UID)).NotTo(Equal(before))
		g.Expect(pod.Status.ContainerStatuses).To(HaveLen(1))
		g.Expect(pod.Status.ContainerStatuses[0].Ready).To(BeTrue())
	}).WithContext(ctx).WithTimeout(3 * time.Minute).Should(Succeed())
}

// deletePod deletes the pod of a cache and waits until its successor is ready.
func deletePod(ctx context.Context, upstreamHost string) {
	GinkgoHelper()
	pod := cachePod(ctx, upstreamHost)
	Expect(kube.Delete(ctx, pod)).To(Succeed())
	waitForReadyCache(ctx, upstreamHost, string(pod.UID))
}

// signalCache sends a signal to the server of a cache, by the container runtime of its node.
func signalCache(ctx context.Context, pod *corev1.Pod, signal string) {
	GinkgoHelper()
	node, _ := nodeOf(pod)
	Expect(pod.Status.ContainerStatuses).To(HaveLen(1))
	id := strings.TrimPrefix(pod.Status.ContainerStatuses[0].ContainerID, "containerd://")
	running, err := node.Run(ctx, nil, "ctr", "--namespace", "k8s.io", "tasks", "ls", "--quiet")
	Expect(err).NotTo(HaveOccurred())
	if signal == "SIGCONT" && !slices.Contains(strings.Fields(string(running)), id) {
		return // the kubelet has ended it meanwhile
	}
	_, err = node.Run(ctx, nil, "ctr", "--namespace", "k8s.io", "tasks", "kill", "--signal", signal, id)
	Expect(err).NotTo(HaveOccurred())
}

// freezeCache stops the server of a cache as it is, with its ports open, until the spec ends or it gets SIGCONT.
func freezeCache(ctx context.Context, pod *corev1.Pod) {
	GinkgoHelper()
	DeferCleanup(func(ctx context.Context) { signalCache(ctx, pod, "SIGCONT") }, NodeTimeout(time.Minute))
	signalCache(ctx, pod, "SIGSTOP")
}

// askCache sends a request to a cache of the Shoot from the node and returns the answer without its body.
func askCache(ctx context.Context, node kindcluster.Node, result *shoot.Result, method, url string) (*http.Response, error) {
	GinkgoHelper()
	scheme, _, _ := strings.Cut(url, "://")
	transport, done := cacheTransport(ctx, node, result, scheme)
	defer done()
	request, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "*/*")
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, response.Body)
	return response, errors.Join(err, response.Body.Close())
}

// pullByCrane reads all of an image through the cache at endpoint, and verifies the digests.
func pullByCrane(ctx context.Context, transport http.RoundTripper, endpoint, reference string) error {
	_, path, _ := strings.Cut(reference, "/")
	_, address, _ := strings.Cut(endpoint, "://")
	image, err := crane.Pull(address+"/"+path, crane.WithContext(ctx), crane.WithTransport(transport), crane.Insecure)
	if err != nil {
		return err
	}
	if _, err := image.RawConfigFile(); err != nil {
		return err
	}
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	for _, layer := range layers {
		content, err := layer.Compressed()
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, content)
		if err := errors.Join(err, content.Close()); err != nil {
			return fmt.Errorf("reading a layer of %s: %w", reference, err)
		}
	}
	return nil
}

// metric returns the value of a metric of a cache, summed up over the series that have all the given labels ("name",
// "value", ...), as Prometheus gets it from the pod.
func metric(ctx context.Context, upstreamHost, name string, labels ...string) float64 {
	GinkgoHelper()
	config, err := tb.Cluster.RESTConfig()
	Expect(err).NotTo(HaveOccurred())
	clients, err := kubernetes.NewForConfig(config)
	Expect(err).NotTo(HaveOccurred())
	text, err := clients.CoreV1().Pods("kube-system").ProxyGet("http", registryv1alpha3.ObjectName(upstreamHost)+"-0", "5001", "/metrics", nil).DoRaw(ctx)
	Expect(err).NotTo(HaveOccurred())
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	Expect(err).NotTo(HaveOccurred())
	Expect(families).To(HaveKey(name))
	var sum float64
	for _, series := range families[name].GetMetric() {
		if hasLabels(series, labels) {
			sum += series.GetCounter().GetValue() + series.GetGauge().GetValue()
		}
	}
	return sum
}

func hasLabels(series *dto.Metric, labels []string) bool {
	for i := 0; i+1 < len(labels); i += 2 {
		if !slices.ContainsFunc(series.GetLabel(), func(l *dto.LabelPair) bool { return l.GetName() == labels[i] && l.GetValue() == labels[i+1] }) {
			return false
		}
	}
	return true
}

// inspection is what the stories read of "registry-cache inspect -o json".
type inspection struct {
	Policy struct {
		TTLSeconds int64 `json:"ttlSeconds"`
	} `json:"policy"`
	Volume struct {
		UsedPercent float64 `json:"usedPercent"`
	} `json:"volume"`
	Images []struct {
		Repository string    `json:"repository"`
		Tags       []string  `json:"tags"`
		LastUse    time.Time `json:"lastUse"`
		Objects    struct {
			Present    int `json:"present"`
			Referenced int `json:"referenced"`
		} `json:"objects"`
	} `json:"images"`
}

// inspectCache runs "registry-cache inspect" in the pod of a cache, as docs/operations.md says.
func inspectCache(ctx context.Context, upstreamHost string) inspection {
	GinkgoHelper()
	out := kubectl(ctx, "-n", "kube-system", "exec", registryv1alpha3.ObjectName(upstreamHost)+"-0", "--",
		"/registry-cache", "inspect", "--config", "/etc/registry-cache/config.yaml", "-o", "json")
	var report inspection
	Expect(json.Unmarshal([]byte(out), &report)).To(Succeed())
	return report
}

// complete returns the tags of the images that can be served without the upstream.
func (r inspection) complete() []string {
	var tags []string
	for _, image := range r.Images {
		if image.Objects.Present == image.Objects.Referenced {
			tags = append(tags, image.Tags...)
		}
	}
	return tags
}

// tagOf returns the tag of a reference "host/repository:tag".
func tagOf(reference string) string { return reference[strings.LastIndexByte(reference, ':')+1:] }
