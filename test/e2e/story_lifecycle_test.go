// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
	"github.com/gardener/gardener/pkg/extensions"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	registryv1alpha3 "github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/shoot"
)

// backAfter is the most that a Service may be missing that somebody has deleted.
const backAfter = 15 * time.Second

// Operations on a Shoot and on the objects of a cache with two replicas, while nodes pull.
var _ = Describe("A cache with two replicas", Ordered, Label("lifecycle"), func() {
	const upstreamHost = "docker.io"
	var (
		manifest []byte
		result   *shoot.Result
		warm     sample
		direct   time.Duration
	)
	name := registryv1alpha3.ObjectName(upstreamHost)

	BeforeAll(func(ctx context.Context) {
		manifest = shootOf("v1alpha3", "- upstream: docker.io\n  volume:\n    size: 1Gi\n  highAvailability:\n    enabled: true")
		result = startShoot(ctx, manifest)
		for _, pod := range []string{name + "-0", name + "-1"} {
			Eventually(func(g Gomega) { g.Expect(readyPod(ctx, g, pod)).To(BeTrue(), pod) }).WithContext(ctx).Should(Succeed())
		}
		warm = newSample(ctx, upstreamHost, small)
		for _, node := range workers() {
			_, err := pull.Measured(ctx, tb.Upstream, node, warm.tag)
			Expect(err).NotTo(HaveOccurred())
		}
		for range 3 {
			outcome, err := pull.Measured(ctx, tb.Upstream, workers()[0], newSample(ctx, "gcr.io", small).tag)
			Expect(err).NotTo(HaveOccurred())
			direct = max(direct, outcome.Duration)
		}
	}, NodeTimeout(8*time.Minute))

	next := func(ctx context.Context, n int) (string, error) {
		if n%2 == 1 {
			return warm.tag, nil
		}
		image, err := makeSample(ctx, upstreamHost, small)
		return image.tag, err
	}
	service := func(ctx context.Context) *corev1.Service {
		GinkgoHelper()
		found := &corev1.Service{}
		Expect(kube.Get(ctx, inKubeSystem(name), found)).To(Succeed())
		return found
	}

	It("keeps its ClusterIP and the node configuration when a Shoot owner deletes its Service", func(ctx context.Context) {
		checksums := func() map[string]string {
			GinkgoHelper()
			list, found := &corev1.NodeList{}, map[string]string{}
			Expect(kube.List(ctx, list)).To(Succeed())
			for _, node := range list.Items {
				found[node.Name] = node.Annotations["checksum/cloud-config-data"]
			}
			return found
		}
		before, deleted := checksums(), service(ctx)
		going := startPullsWithoutPause(ctx, maxPulls, next, workers()...)
		going.waitForMore(ctx, 1)
		for range 3 {
			last := service(ctx)
			Expect(kube.Delete(ctx, last)).To(Succeed())
			Eventually(func(g Gomega) {
				again := &corev1.Service{}
				g.Expect(kube.Get(ctx, inKubeSystem(name), again)).To(Succeed())
				g.Expect(again.UID).NotTo(Equal(last.UID))
				g.Expect(again.Spec.ClusterIP).To(Equal(deleted.Spec.ClusterIP))
			}).WithContext(ctx).WithTimeout(backAfter).WithPolling(20 * time.Millisecond).Should(Succeed())
			going.waitForMore(ctx, 1)
		}
		expectPulled("Service deleted three times", direct+2*time.Second+noise, going.end())
		Expect(checksums()).To(Equal(before))
		waitForCaches(ctx, result)
	}, SpecTimeout(5*time.Minute))

	It("tolerates the loss of one replica", func(ctx context.Context) {
		going := startPullsWithoutPause(ctx, maxPulls, next, workers()...)
		going.waitForMore(ctx, 1)
		pod := &corev1.Pod{}
		Expect(kube.Get(ctx, inKubeSystem(name+"-1"), pod)).To(Succeed())
		Expect(kube.Delete(ctx, pod, client.GracePeriodSeconds(0))).To(Succeed())
		going.waitForMore(ctx, 3)
		expectPulled("one of two pods killed", direct+unreachable+noise, going.end())
		Eventually(func(g Gomega) { g.Expect(readyPod(ctx, g, name+"-1")).To(BeTrue()) }).WithContext(ctx).Should(Succeed())
	}, SpecTimeout(5*time.Minute))

	It("keeps its ClusterIP during hibernation and serves images afterwards", func(ctx context.Context) {
		before := service(ctx)
		asleep := []byte(strings.Replace(string(manifest), "spec:\n", "spec:\n  hibernation:\n    enabled: true\n", 1))
		_, err := shoot.Apply(ctx, tb.Cluster, progress, asleep)
		Expect(err).NotTo(HaveOccurred())
		result = applyShoot(ctx, manifest)
		Expect(service(ctx).Spec.ClusterIP).To(Equal(before.Spec.ClusterIP))
		Expect(endpoint(result, upstreamHost)).To(ContainSubstring(before.Spec.ClusterIP))
		outcome, err := pull.Measured(ctx, tb.Upstream, workers()[0], warm.digest)
		Expect(err).NotTo(HaveOccurred())
		// The other one of the two pods may not have had it.
		Expect(outcome.FromNodes).To(BeZero(), "%+v", outcome)
	}, SpecTimeout(6*time.Minute))

	It("runs unchanged during a control plane migration to another Seed", func(ctx context.Context) {
		pod, address := cachePod(ctx, upstreamHost), service(ctx).Spec.ClusterIP
		going := startPulls(ctx, maxPulls, next, workers()...)
		going.waitForMore(ctx, 1)

		By("letting go")
		operate(ctx, result.Namespace, "migrate", gardencorev1beta1.LastOperationTypeMigrate)
		left := &resourcesv1alpha1.ManagedResourceList{}
		Expect(kube.List(ctx, left, client.InNamespace(result.Namespace))).To(Succeed())
		Expect(itemNames(left)).NotTo(ContainElement(ContainSubstring("registry-cache")))
		going.waitForMore(ctx, 1)

		By("taking over")
		// Gardener's library takes the order away after it was carried out, and reconciles once more if anything has
		// changed meanwhile.
		operate(ctx, result.Namespace, "restore", gardencorev1beta1.LastOperationTypeRestore, gardencorev1beta1.LastOperationTypeReconcile)
		going.waitForMore(ctx, 1)
		expectPulled("migration", direct+2*time.Second+noise, going.end())
		Expect(service(ctx).Spec.ClusterIP).To(Equal(address))
		after := cachePod(ctx, upstreamHost)
		Expect(after.UID).To(Equal(pod.UID), "the cache must not be touched")
		Expect(after.Status.ContainerStatuses[0].RestartCount).To(BeZero(), "the cache must not be touched")
	}, SpecTimeout(6*time.Minute))

	// This spec must be the last one: it leaves objects behind, which the deletion of the Shoot removes.
	It("does not block a forced deletion of a Shoot with an unreachable API server", func(ctx context.Context) {
		loseShootAPI(ctx, result.Namespace)
		cluster := &extensionsv1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: result.Namespace}}
		Expect(kube.Patch(ctx, cluster, client.RawPatch(types.MergePatchType, fmt.Appendf(nil,
			`{"spec":{"shoot":{"metadata":{"deletionTimestamp":%q,"annotations":{"confirmation.gardener.cloud/force-deletion":"true"}}}}}`,
			time.Now().UTC().Format(time.RFC3339))))).To(Succeed())

		extension := &extensionsv1alpha1.Extension{ObjectMeta: metav1.ObjectMeta{Namespace: result.Namespace, Name: "registry-cache"}}
		Expect(extensions.DeleteExtensionObject(ctx, kube, extension)).To(Succeed())
		Eventually(func() bool {
			return apierrors.IsNotFound(kube.Get(ctx, client.ObjectKeyFromObject(extension), &extensionsv1alpha1.Extension{}))
		}).WithContext(ctx).WithTimeout(time.Minute).Should(BeTrue(), "the Extension must be gone")
		left := &resourcesv1alpha1.ManagedResourceList{}
		Expect(kube.List(ctx, left, client.InNamespace(result.Namespace), client.MatchingLabels{"origin": "registry-cache"})).To(Succeed())
		for _, resource := range left.Items {
			Expect(resource.DeletionTimestamp).NotTo(BeNil(), resource.Name)
		}
	}, SpecTimeout(4*time.Minute))
})

// loseShootAPI lets the kubeconfigs by which the Seed reaches the Shoot lead nowhere: to a port of the pod that reads them.
func loseShootAPI(ctx context.Context, namespace string) {
	GinkgoHelper()
	lost := 0
	for _, name := range []string{"gardener", "gardener-internal"} {
		secret := &corev1.Secret{}
		err := kube.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, secret)
		if apierrors.IsNotFound(err) {
			continue
		}
		Expect(err).NotTo(HaveOccurred())
		config, err := clientcmd.Load(secret.Data["kubeconfig"])
		Expect(err).NotTo(HaveOccurred())
		for _, cluster := range config.Clusters {
			cluster.Server = "https://127.0.0.1:1"
			lost++
		}
		secret.Data["kubeconfig"], err = clientcmd.Write(*config)
		Expect(err).NotTo(HaveOccurred())
		Expect(kube.Update(ctx, secret)).To(Succeed())
	}
	Expect(lost).To(BeNumerically(">", 0), "there is no kubeconfig of the Shoot")
}

func readyPod(ctx context.Context, g Gomega, name string) bool {
	pod := &corev1.Pod{}
	g.Expect(kube.Get(ctx, inKubeSystem(name), pod)).To(Succeed())
	return len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].Ready
}

// operate gives the Extension an order, as gardenlet does, and waits until one of the operations has succeeded.
func operate(ctx context.Context, namespace, order string, operations ...gardencorev1beta1.LastOperationType) {
	GinkgoHelper()
	key := types.NamespacedName{Namespace: namespace, Name: "registry-cache"}
	extension := &extensionsv1alpha1.Extension{}
	Expect(kube.Get(ctx, key, extension)).To(Succeed())
	before := extension.Status.LastOperation.LastUpdateTime
	patch := client.MergeFrom(extension.DeepCopy())
	metav1.SetMetaDataAnnotation(&extension.ObjectMeta, "gardener.cloud/operation", order)
	metav1.SetMetaDataAnnotation(&extension.ObjectMeta, "gardener.cloud/timestamp", time.Now().UTC().Format(time.RFC3339Nano))
	Expect(kube.Patch(ctx, extension, patch)).To(Succeed())
	Eventually(func(g Gomega) {
		extension := &extensionsv1alpha1.Extension{}
		g.Expect(kube.Get(ctx, key, extension)).To(Succeed())
		g.Expect(extension.Annotations).NotTo(HaveKey("gardener.cloud/operation"))
		last := extension.Status.LastOperation
		g.Expect(last.State).To(Equal(gardencorev1beta1.LastOperationStateSucceeded), "%+v", extension.Status.LastError)
		g.Expect(operations).To(ContainElement(last.Type))
		g.Expect(last.LastUpdateTime.Before(&before)).To(BeFalse())
	}).WithContext(ctx).Should(Succeed())
}
