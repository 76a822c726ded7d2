// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/shoot"
)

// systemRegistry is where the images of the cluster's own components are from; ghcr.io is where that of the caches is.
const systemRegistry = "registry.k8s.io"

// systemCaches are caches of both, with a StorageClass or the default one.
func systemCaches(class string) []byte {
	return shootOf("v1alpha3", fmt.Sprintf(`
- upstream: registry.k8s.io
  volume:
    size: 1Gi%[1]s
- upstream: ghcr.io
  volume:
    size: 1Gi%[1]s
`, class))
}

// Usage document: "Usually, until the registry cache Pod is running containerd falls back to the upstream for pulling
// the images from the Shoot system components". The start of a cluster must never depend on a cache.
var _ = Describe("System components start", Ordered, Label("system"), func() {
	var direct time.Duration

	BeforeAll(func(ctx context.Context) {
		for range 3 {
			outcome, err := pull.Measured(ctx, tb.Upstream, workers()[0], newSample(ctx, "gcr.io", small).tag)
			Expect(err).NotTo(HaveOccurred())
			direct = max(direct, outcome.Duration)
		}
	}, NodeTimeout(2*time.Minute))

	// startComponents pulls, which must not take longer than without a cache and a limit, starts what has to be pulled, and
	// restarts what runs.
	startComponents := func(ctx context.Context, what string, limit time.Duration) {
		GinkgoHelper()
		node := workers()[0]
		going := startPulls(ctx, 2, newOf(systemRegistry), workers()...)
		expectPulled(what, direct+limit+noise, going.wait(ctx))
		Expect(pull.Remove(ctx, node, images.SampleKubernetes)).To(Succeed())
		runSystemPod(ctx, node, images.SampleKubernetes)
		for _, app := range []string{"kube-proxy", "kube-dns"} {
			restart(ctx, app)
		}
	}

	It("while the volumes of their caches are pending and no cache is ready", Label("long"), func(ctx context.Context) {
		manifest := systemCaches("\n    storageClassName: e2e-none")
		Expect(shoot.Delete(ctx, tb.Cluster, progress, manifest)).To(Succeed())
		DeferCleanup(func(ctx context.Context) {
			Expect(shoot.Delete(ctx, tb.Cluster, progress, manifest)).To(Succeed())
		}, NodeTimeout(5*time.Minute))
		_, err := shoot.Apply(ctx, tb.Cluster, progress, manifest)
		Expect(err).NotTo(HaveOccurred(), "the Shoot must not wait for its caches")
		claims := &corev1.PersistentVolumeClaimList{}
		Eventually(func(g Gomega) {
			g.Expect(kube.List(ctx, claims, client.InNamespace("kube-system"), client.MatchingLabels{"upstream-host": systemRegistry})).To(Succeed())
			g.Expect(claims.Items).To(HaveLen(1))
		}).WithContext(ctx).Should(Succeed())
		Expect(claims.Items[0].Status.Phase).To(Equal(corev1.ClaimPending))
		startComponents(ctx, "volume pending", 0)
		for _, node := range nodes {
			hosts, err := pull.Hosts(ctx, node, systemRegistry)
			Expect(err).NotTo(HaveOccurred())
			Expect(pull.UsesMirror(hosts)).To(BeFalse(), "%s: %s", node.Name, hosts)
		}
		// The time of BeforeAll counts.
	}, SpecTimeout(8*time.Minute))

	It("while their caches are unavailable and after their caches are ready again", func(ctx context.Context) {
		result := startShoot(ctx, systemCaches(""))
		for _, host := range []string{systemRegistry, "ghcr.io"} {
			scale(ctx, host, 0)
		}
		startComponents(ctx, "caches away", unreachable)
		for _, host := range []string{systemRegistry, "ghcr.io"} {
			scale(ctx, host, 1)
		}
		waitForCaches(ctx, result)
		mark := markUpstream(ctx)
		startComponents(ctx, "caches back", 0)
		Expect(requestsOfNodes(ctx, mark)).To(BeEmpty(), "the caches must be used again")
	}, SpecTimeout(10*time.Minute))
})

// runSystemPod runs a Pod as the components of the cluster are run, until the spec ends: its image is always pulled.
func runSystemPod(ctx context.Context, node kindcluster.Node, image string) {
	GinkgoHelper()
	pod := &corev1.Pod{}
	pod.Namespace, pod.Name = "kube-system", "e2e-component"
	pod.Spec = corev1.PodSpec{
		NodeName: node.Name, HostNetwork: true, PriorityClassName: "system-node-critical", TerminationGracePeriodSeconds: new(int64(1)),
		Containers: []corev1.Container{{Name: "sample", Image: image, ImagePullPolicy: corev1.PullAlways}},
	}
	Expect(client.IgnoreNotFound(kube.Delete(ctx, pod.DeepCopy(), client.GracePeriodSeconds(0)))).To(Succeed())
	Eventually(func() error { return kube.Create(ctx, pod.DeepCopy()) }).WithContext(ctx).Should(Succeed())
	DeferCleanup(func(ctx context.Context) {
		Expect(client.IgnoreNotFound(kube.Delete(ctx, pod, client.GracePeriodSeconds(0)))).To(Succeed())
	}, NodeTimeout(time.Minute))
	Eventually(func(g Gomega) { g.Expect(readyPod(ctx, g, pod.Name)).To(BeTrue()) }).WithContext(ctx).Should(Succeed())
}

// restart deletes the pods of a component and waits until as many new ones are ready.
func restart(ctx context.Context, app string) {
	GinkgoHelper()
	list := func(g Gomega) map[types.UID]bool {
		pods := &corev1.PodList{}
		g.Expect(kube.List(ctx, pods, client.InNamespace("kube-system"), client.MatchingLabels{"k8s-app": app})).To(Succeed())
		ready := map[types.UID]bool{}
		for _, pod := range pods.Items {
			ready[pod.UID] = len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].Ready
		}
		return ready
	}
	before := list(Default)
	Expect(before).NotTo(BeEmpty())
	Expect(kube.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace("kube-system"), client.MatchingLabels{"k8s-app": app})).To(Succeed())
	Eventually(func(g Gomega) {
		after := list(g)
		g.Expect(after).To(HaveLen(len(before)))
		for uid, ready := range after {
			g.Expect(before).NotTo(HaveKey(uid))
			g.Expect(ready).To(BeTrue())
		}
	}).WithContext(ctx).Should(Succeed())
}
