// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	registryv1alpha3 "github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/shoot"
)

// shootWithVolume is a Shoot whose cache of docker.io has a volume of that size.
func shootWithVolume(size string) []byte {
	return shootOf("v1alpha3", "- upstream: docker.io\n  volume:\n    size: "+size)
}

// The usage document describes two manual alternatives. Here a larger size in the Shoot is sufficient.
var _ = Describe("A larger volume size in the Shoot", Ordered, Label("resize"), func() {
	name := registryv1alpha3.ObjectName("docker.io")
	apply := func(ctx context.Context, size string) *shoot.Result {
		GinkgoHelper()
		result, err := shoot.Apply(ctx, tb.Cluster, progress, shootWithVolume(size))
		Expect(err).NotTo(HaveOccurred())
		return result
	}

	BeforeAll(func(ctx context.Context) {
		Expect(shoot.Delete(ctx, tb.Cluster, progress, shootWithVolume("1Gi"))).To(Succeed())
		apply(ctx, "1Gi")
		DeferCleanup(func(ctx context.Context) {
			Expect(shoot.Delete(ctx, tb.Cluster, progress, shootWithVolume("1Gi"))).To(Succeed())
		}, NodeTimeout(5*time.Minute))
		for _, node := range nodes {
			Expect(pull.WaitForMirror(ctx, node, "docker.io")).To(Succeed())
		}
	}, NodeTimeout(8*time.Minute))

	It("expands the volume of the running cache and preserves its content", func(ctx context.Context) {
		image := newImage(ctx, "docker.io")
		_, err := pull.Measured(ctx, tb.Upstream, workers()[0], image)
		Expect(err).NotTo(HaveOccurred())
		pod, set := &corev1.Pod{}, &appsv1.StatefulSet{}
		Expect(kube.Get(ctx, inKubeSystem(name+"-0"), pod)).To(Succeed())
		Expect(kube.Get(ctx, inKubeSystem(name), set)).To(Succeed())
		Expect(volumeSize(ctx, "docker.io")).To(BeNumerically("~", 1<<30, 100<<20))

		result := apply(ctx, "2Gi")

		By("looking at the volume, as the cache sees it")
		Eventually(func(ctx context.Context) int64 { return volumeSize(ctx, "docker.io") }).WithContext(ctx).
			WithTimeout(3 * time.Minute).Should(BeNumerically("~", 2<<30, 100<<20))
		claims := &corev1.PersistentVolumeClaimList{}
		Expect(kube.List(ctx, claims, client.InNamespace("kube-system"), client.MatchingLabels{"upstream-host": "docker.io"})).To(Succeed())
		Expect(claims.Items).To(HaveLen(1))
		Expect(claims.Items[0].Spec.Resources.Requests.Storage().String()).To(Equal("2Gi"))

		By("reading the limit of the cache")
		expectLimit(ctx, 2<<30)

		By("looking at the StatefulSet and its pod")
		Eventually(func(g Gomega) {
			again := &appsv1.StatefulSet{}
			g.Expect(kube.Get(ctx, inKubeSystem(name), again)).To(Succeed())
			g.Expect(again.UID).NotTo(Equal(set.UID), "later pods would get a volume of the old size")
			g.Expect(again.Spec.VolumeClaimTemplates[0].Spec.Resources.Requests.Storage().String()).To(Equal("2Gi"))
			g.Expect(again.Status.ReadyReplicas).To(Equal(int32(1)))
		}).WithContext(ctx).Should(Succeed())
		same := &corev1.Pod{}
		Expect(kube.Get(ctx, inKubeSystem(name+"-0"), same)).To(Succeed())
		Expect(same.UID).To(Equal(pod.UID))
		Expect(same.Status.ContainerStatuses[0].RestartCount).To(BeZero())

		By("looking at the status")
		expectVolume(ctx, result.Namespace, "2Gi", "AsConfigured")

		By("pulling what was cached before")
		outcome, err := pull.Measured(ctx, tb.Upstream, workers()[1], image)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.BlobRequests).To(BeZero(), "%+v", outcome)
	}, SpecTimeout(12*time.Minute))
})

// The first alternative of the usage document, with its exact commands.
var _ = Describe("A larger size in the PersistentVolumeClaim", Ordered, Label("resize", "long"), func() {
	BeforeAll(func(ctx context.Context) { startShoot(ctx, shootWithVolume("1Gi")) }, NodeTimeout(8*time.Minute))

	It("expands the volume as documented, and the next reconciliation does not revert it", func(ctx context.Context) {
		image := newSample(ctx, "docker.io", small)
		_, err := pull.Measured(ctx, tb.Upstream, workers()[0], image.tag)
		Expect(err).NotTo(HaveOccurred())
		pod := cachePod(ctx, "docker.io")

		listed := shell(ctx, "", "kubectl -n kube-system get pvc -l upstream-host=docker.io")
		lines := strings.Split(strings.TrimSpace(listed), "\n")
		Expect(lines).To(HaveLen(2), listed)
		name := strings.Fields(lines[1])[0]
		shell(ctx, name, `kubectl -n kube-system patch pvc $PVC_NAME --type merge -p '{"spec":{"resources":{"requests": {"storage": "10Gi"}}}}'`)
		Eventually(func(ctx context.Context) string {
			return shell(ctx, "", "kubectl -n kube-system describe pvc -l upstream-host=docker.io")
		}).WithContext(ctx).WithTimeout(3 * time.Minute).Should(MatchRegexp(`Capacity:\s+10Gi`))

		By("looking at the volume, as the cache sees it")
		Eventually(func(ctx context.Context) int64 { return volumeSize(ctx, "docker.io") }).WithContext(ctx).
			WithTimeout(time.Minute).Should(BeNumerically("~", 10<<30, 200<<20))

		By("reconciling the Shoot, in which the size is the old one")
		result := applyShoot(ctx, shootWithVolume("1Gi"))
		expectVolume(ctx, result.Namespace, "10Gi", "LargerThanConfigured")
		expectLimit(ctx, 10<<30)
		claim := claimOf(ctx, "docker.io")
		Expect(claim.Spec.Resources.Requests.Storage().String()).To(Equal("10Gi"))
		Expect(cachePod(ctx, "docker.io").UID).To(Equal(pod.UID))
		outcome, err := pull.Measured(ctx, tb.Upstream, workers()[1], image.digest)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.Requests).To(BeZero(), "%+v", outcome)
	}, SpecTimeout(11*time.Minute))
})

// The second alternative of the usage document, with the drawback that it states: the cache starts with an empty
// volume.
var _ = Describe("A cache that is removed and added again with another size", Ordered, Label("resize", "long"), func() {
	// One cache has to be there all the time.
	caches := func(size string) []byte {
		if size == "" {
			return shootOf("v1alpha3", "- upstream: quay.io")
		}
		return shootOf("v1alpha3", fmt.Sprintf("- upstream: docker.io\n  volume:\n    size: %s\n- upstream: quay.io", size))
	}

	BeforeAll(func(ctx context.Context) { startShoot(ctx, caches("2Gi")) }, NodeTimeout(8*time.Minute))

	It("starts with an empty volume of that size, which may be smaller", func(ctx context.Context) {
		image := newSample(ctx, "docker.io", small)
		_, err := pull.Measured(ctx, tb.Upstream, workers()[0], image.tag)
		Expect(err).NotTo(HaveOccurred())
		before := claimOf(ctx, "docker.io")

		applyShoot(ctx, caches(""))
		Eventually(func(ctx context.Context) []corev1.PersistentVolumeClaim { return listClaims(ctx, "docker.io") }).WithContext(ctx).Should(BeEmpty())
		outcome, err := pull.Measured(ctx, tb.Upstream, workers()[0], image.tag)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.FromCache).To(BeZero(), "%+v", outcome)

		applyShoot(ctx, caches("1Gi"))
		after := claimOf(ctx, "docker.io")
		Expect(after.UID).NotTo(Equal(before.UID))
		Expect(volumeSize(ctx, "docker.io")).To(BeNumerically("~", 1<<30, 100<<20))
		Expect(inspectCache(ctx, "docker.io").Images).To(BeEmpty())
		outcome, err = pull.Measured(ctx, tb.Upstream, workers()[0], image.tag)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.FromNodes).To(BeZero(), "%+v", outcome)
		Expect(outcome.BlobRequests).To(BeNumerically(">", 0), "%+v", outcome)
	}, SpecTimeout(7*time.Minute))
})

// shell runs a line of the document, as the Shoot owner does who has set KUBECONFIG and, where it is not empty, PVC_NAME.
func shell(ctx context.Context, pvcName, line string) string {
	GinkgoHelper()
	out, err := nodes[0].Run(ctx, nil, "env", "KUBECONFIG=/etc/kubernetes/admin.conf", "PVC_NAME="+pvcName, "sh", "-euc", line)
	Expect(err).NotTo(HaveOccurred())
	return string(out)
}

// expectVolume waits until the status of the Extension says that the volume of docker.io has the size, and why.
func expectVolume(ctx context.Context, namespace, size, reason string) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		extension, status := &extensionsv1alpha1.Extension{}, &registryv1alpha3.RegistryStatus{}
		g.Expect(kube.Get(ctx, types.NamespacedName{Namespace: namespace, Name: "registry-cache"}, extension)).To(Succeed())
		g.Expect(json.Unmarshal(extension.Status.ProviderStatus.Raw, status)).To(Succeed())
		g.Expect(status.Caches).To(HaveLen(1))
		cache := status.Caches[0]
		g.Expect(cache.Volume).NotTo(BeNil())
		g.Expect(cache.Volume.Requested.String()).To(Equal(size))
		g.Expect(cache.Volume.Capacity.String()).To(Equal(size))
		condition := meta.FindStatusCondition(cache.Conditions, registryv1alpha3.ConditionVolumeResized)
		g.Expect(condition).NotTo(BeNil())
		g.Expect(condition.Reason).To(Equal(reason), condition.Message)
	}).WithContext(ctx).WithTimeout(2 * time.Minute).Should(Succeed())
}

// expectLimit waits until the cache of docker.io may use a volume of that size, in bytes, less what the file system needs for
// itself. The controller checks a growing volume every 30 seconds, and the kubelet updates files of Secrets about once per
// minute.
func expectLimit(ctx context.Context, size int64) {
	GinkgoHelper()
	limit := func(ctx context.Context) float64 {
		return metric(ctx, "docker.io", "registry_cache_volume_limit_bytes")
	}
	Eventually(limit).WithContext(ctx).WithTimeout(4 * time.Minute).Should(BeNumerically("~", size, 200<<20))
}

// volumeSize returns the size of a cache's file system in bytes.
func volumeSize(ctx context.Context, upstreamHost string) int64 {
	GinkgoHelper()
	dir := volumeDir(ctx, upstreamHost)
	output, err := dir.node.Run(ctx, nil, "stat", "--file-system", "--format=%b %S", dir.path)
	Expect(err).NotTo(HaveOccurred())
	blocks, size, ok := strings.Cut(strings.TrimSpace(string(output)), " ")
	Expect(ok).To(BeTrue(), "%q", output)
	count, err := strconv.ParseInt(blocks, 10, 64)
	Expect(err).NotTo(HaveOccurred())
	each, err := strconv.ParseInt(size, 10, 64)
	Expect(err).NotTo(HaveOccurred())
	return count * each
}
