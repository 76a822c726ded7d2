// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
	"github.com/google/go-containerregistry/pkg/crane"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	registryv1alpha3 "github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/shoot"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

func scheme() *runtime.Scheme {
	GinkgoHelper()
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientscheme.AddToScheme, gardencorev1beta1.AddToScheme, extensionsv1alpha1.AddToScheme, resourcesv1alpha1.AddToScheme} {
		Expect(add(s)).To(Succeed())
	}
	return s
}

func inKubeSystem(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: "kube-system", Name: name}
}

// endpoint returns the URL of the cache of an upstream.
func endpoint(result *shoot.Result, upstreamHost string) string {
	GinkgoHelper()
	for _, cache := range result.Status.Caches {
		if cache.Upstream == upstreamHost {
			return cache.Endpoint
		}
	}
	Fail("no cache of " + upstreamHost + " in the status")
	return ""
}

// schemeOf returns the scheme of the cache of an upstream.
func schemeOf(result *shoot.Result, upstreamHost string) string {
	GinkgoHelper()
	scheme, _, _ := strings.Cut(endpoint(result, upstreamHost), "://")
	return scheme
}

// craneLayers pulls the image with crane through the cache of its upstream, as a client on the node would reach it, reads
// every layer to its end (crane verifies the digests) and returns the layers' digests. A cache with https is verified by
// the CA of the Shoot, and by nothing else.
func craneLayers(ctx context.Context, node kindcluster.Node, result *shoot.Result, reference string) []string {
	GinkgoHelper()
	host, path, _ := strings.Cut(reference, "/")
	_, address, _ := strings.Cut(endpoint(result, host), "://")
	transport, done := cacheTransport(ctx, node, result, schemeOf(result, host))
	defer done()
	// Insecure allows http, and does not keep crane from https.
	img, err := crane.Pull(address+"/"+path, crane.WithContext(ctx), crane.WithTransport(transport), crane.Insecure)
	Expect(err).NotTo(HaveOccurred())
	layers, err := img.Layers()
	Expect(err).NotTo(HaveOccurred())
	var digests []string
	for _, layer := range layers {
		digest, err := layer.Digest()
		Expect(err).NotTo(HaveOccurred())
		content, err := layer.Compressed()
		Expect(err).NotTo(HaveOccurred())
		_, err = io.Copy(io.Discard, content)
		Expect(err).NotTo(HaveOccurred())
		Expect(content.Close()).To(Succeed())
		digests = append(digests, digest.String())
	}
	return digests
}

// markUpstream returns the ID of the upstream's latest request.
func markUpstream(ctx context.Context) int64 {
	GinkgoHelper()
	mark, err := pull.Mark(ctx, tb.Upstream)
	Expect(err).NotTo(HaveOccurred())
	return mark
}

// expectSentOnce expects that the upstream has sent each byte of an image once since the mark. The size is that of its
// blobs, in bytes. A tolerance of 1 % covers bytes that were on their way when a transfer ended, and the config.
func expectSentOnce(ctx context.Context, mark, size int64) {
	GinkgoHelper()
	sent := sentBlobs(ctx, mark)
	AddReportEntry("bytes from the upstream", fmt.Sprintf("%d for an image of %d", sent, size))
	Expect(sent).To(BeNumerically(">=", size), "bytes that the upstream has sent")
	Expect(sent).To(BeNumerically("<=", size+size/100), "bytes that the upstream has sent")
}

// blobTransfers returns how often the upstream has sent each blob since the mark.
func blobTransfers(ctx context.Context, mark int64) map[string]int {
	GinkgoHelper()
	requests, err := tb.Upstream.Requests(ctx, mark)
	Expect(err).NotTo(HaveOccurred())
	transfers := map[string]int{}
	for _, request := range requests {
		if request.Kind == upstream.Blob && request.Method == http.MethodGet {
			transfers[request.Digest]++
		}
	}
	return transfers
}

// requestsOfNodes returns what containerd itself has asked the upstream since the mark.
func requestsOfNodes(ctx context.Context, mark int64) []string {
	GinkgoHelper()
	requests, err := tb.Upstream.Requests(ctx, mark)
	Expect(err).NotTo(HaveOccurred())
	var found []string
	for _, request := range requests {
		if !strings.HasPrefix(request.UserAgent, "registry-cache/") {
			found = append(found, fmt.Sprintf("%s %s/%s by %s", request.Method, request.Host, request.Repository+"/"+request.Reference, request.UserAgent))
		}
	}
	return found
}

// newImage puts an image nobody has seen before on the upstream and returns its reference.
func newImage(ctx context.Context, host string) string {
	GinkgoHelper()
	reference := fmt.Sprintf("%s/e2e/image:%d", host, time.Now().UnixNano())
	spec := images.Spec{Seed: uint64(time.Now().UnixNano()), LayerSizes: []int64{2 << 20, 1 << 20}}
	_, err := tb.Upstream.Generate(ctx, reference, spec)
	Expect(err).NotTo(HaveOccurred())
	return reference
}

// scale sets the replicas of a cache's StatefulSet.
func scale(ctx context.Context, upstreamHost string, replicas int32) {
	GinkgoHelper()
	statefulSet := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: registryv1alpha3.ObjectName(upstreamHost)}}
	patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas))
	Expect(kube.Patch(ctx, statefulSet, patch)).To(Succeed())
}

// extensionError returns the description of the Extension's last error, "" if there is none.
func extensionError(ctx context.Context, namespace string) string {
	GinkgoHelper()
	extension := &extensionsv1alpha1.Extension{}
	Expect(kube.Get(ctx, types.NamespacedName{Namespace: namespace, Name: "registry-cache"}, extension)).To(Succeed())
	if extension.Status.LastError == nil {
		return ""
	}
	return extension.Status.LastError.Description
}

// runToReady runs a Pod of the image on the node until it is ready, and deletes it.
func runToReady(ctx context.Context, name, node, image string) {
	GinkgoHelper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.PodSpec{
			NodeName:                      node,
			TerminationGracePeriodSeconds: new(int64(1)),
			Containers:                    []corev1.Container{{Name: "sample", Image: image, ImagePullPolicy: corev1.PullAlways}},
		},
	}
	Expect(client.IgnoreNotFound(kube.Delete(ctx, pod.DeepCopy(), client.GracePeriodSeconds(0)))).To(Succeed())
	Eventually(func() error { return kube.Create(ctx, pod.DeepCopy()) }).WithContext(ctx).Should(Succeed())
	DeferCleanup(func(ctx context.Context) {
		Expect(client.IgnoreNotFound(kube.Delete(ctx, pod))).To(Succeed())
	}, NodeTimeout(time.Minute))
	Eventually(func(g Gomega) {
		g.Expect(kube.Get(ctx, client.ObjectKeyFromObject(pod), pod)).To(Succeed())
		g.Expect(pod.Status.ContainerStatuses).To(HaveLen(1))
		g.Expect(pod.Status.ContainerStatuses[0].Ready).To(BeTrue(), "%+v", pod.Status.ContainerStatuses[0].State)
	}).WithContext(ctx).Should(Succeed())
}

// hostDir is a folder on a node.
type hostDir struct {
	node kindcluster.Node
	path string
}

// volumeDir returns where the volume of a cache is mounted, seen from its node.
func volumeDir(ctx context.Context, upstreamHost string) hostDir {
	GinkgoHelper()
	claims := &corev1.PersistentVolumeClaimList{}
	Expect(kube.List(ctx, claims, client.InNamespace("kube-system"), client.MatchingLabels{"upstream-host": upstreamHost})).To(Succeed())
	Expect(claims.Items).To(HaveLen(1))
	pod := &corev1.Pod{}
	Expect(kube.Get(ctx, inKubeSystem(registryv1alpha3.ObjectName(upstreamHost)+"-0"), pod)).To(Succeed())
	for _, node := range nodes {
		if node.Name == pod.Spec.NodeName {
			return hostDir{node, fmt.Sprintf("/var/lib/kubelet/pods/%s/volumes/kubernetes.io~csi/%s/mount", pod.UID, claims.Items[0].Spec.VolumeName)}
		}
	}
	Fail("no node " + pod.Spec.NodeName)
	return hostDir{}
}

func itemNames(list client.ObjectList) []string {
	GinkgoHelper()
	items, err := meta.ExtractList(list)
	Expect(err).NotTo(HaveOccurred())
	var names []string
	for _, item := range items {
		accessor, err := meta.Accessor(item)
		Expect(err).NotTo(HaveOccurred())
		names = append(names, accessor.GetName())
	}
	return names
}
