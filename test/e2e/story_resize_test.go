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
      apiVersion: registry.extensions.gardener.cloud/v1alpha3
      kind: RegistryConfig
      caches:
      - upstream: docker.io
        volume:
          size: %s
`, size)
}

// What the user's document needs two alternatives for: the size in the Shoot is enough.
var _ = Describe("A Shoot owner enlarges a volume in the Shoot", Ordered, Label("resize"), func() {
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

	It("grows it under the running cache, which keeps its content", func(ctx context.Context) {
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
		Eventually(func(g Gomega) {
			extension, status := &extensionsv1alpha1.Extension{}, &registryv1alpha3.RegistryStatus{}
			g.Expect(kube.Get(ctx, types.NamespacedName{Namespace: result.Namespace, Name: "registry-cache"}, extension)).To(Succeed())
			g.Expect(json.Unmarshal(extension.Status.ProviderStatus.Raw, status)).To(Succeed())
			g.Expect(status.Caches).To(HaveLen(1))
			cache := status.Caches[0]
			g.Expect(cache.Volume).NotTo(BeNil())
			g.Expect(cache.Volume.Requested.String()).To(Equal("2Gi"))
			g.Expect(cache.Volume.Capacity.String()).To(Equal("2Gi"))
			g.Expect(meta.IsStatusConditionTrue(cache.Conditions, registryv1alpha3.ConditionVolumeResized)).To(BeTrue(), "%+v", cache.Conditions)
		}).WithContext(ctx).WithTimeout(2 * time.Minute).Should(Succeed())

		By("pulling what was cached before")
		outcome, err := pull.Measured(ctx, tb.Upstream, workers()[1], image)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.BlobRequests).To(BeZero(), "%+v", outcome)
	}, SpecTimeout(8*time.Minute))
})

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
