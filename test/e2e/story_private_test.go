// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"path"
	"time"

	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/pkg/apis/registry"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/shoot"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// Nodes have no credentials, so a successful pull proves that the cache served it.
var _ = Describe("A cache of a private upstream", Ordered, Label("private"), func() {
	const username = "robot"
	var result *shoot.Result

	// private makes all of quay.io private; either password is accepted if there are two.
	private := func(ctx context.Context, password, next string) {
		GinkgoHelper()
		Expect(tb.Upstream.Protect(ctx, upstream.Private{Host: "quay.io", Username: username, Password: password, NextPassword: next})).To(Succeed())
	}

	BeforeAll(func(ctx context.Context) {
		DeferCleanup(func(ctx context.Context) { Expect(tb.Upstream.Protect(ctx)).To(Succeed()) }, NodeTimeout(time.Minute))
		private(ctx, "one", "")
		for name, password := range map[string]string{"e2e-wrong": "none", "e2e-one": "one", "e2e-two": "two"} {
			createSecret(ctx, name, map[string]string{"username": username, "password": password})
		}
		result = startShoot(ctx, privateShoot("e2e-wrong"))
	}, NodeTimeout(8*time.Minute))

	It("reports credentials that the upstream rejects", func(ctx context.Context) {
		_, err := pull.Measured(ctx, tb.Upstream, workers()[0], newSample(ctx, "quay.io", small).tag)
		Expect(err).To(HaveOccurred(), "without credentials nobody may pull it")
		Eventually(func(g Gomega) {
			condition := cacheCondition(ctx, g, result.Namespace, "UpstreamReachable")
			g.Expect(condition.Status).To(Equal(metav1.ConditionFalse))
			g.Expect(condition.Reason).To(Equal("Unauthorized"))
			g.Expect(condition.Message).To(ContainSubstring("secretReferenceName"))
			g.Expect(condition.Message).NotTo(ContainSubstring("none"), "the password is secret")
		}).WithContext(ctx).Should(Succeed())
	}, SpecTimeout(4*time.Minute))

	It("uses corrected credentials without a restart", func(ctx context.Context) {
		pod := cachePod(ctx, "quay.io")
		result = applyShoot(ctx, privateShoot("e2e-one"))
		waitForPassword(ctx, pod, "one")
		outcome, err := pull.Measured(ctx, tb.Upstream, workers()[0], newSample(ctx, "quay.io", small).tag)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.FromNodes).To(BeZero(), "%+v", outcome)
		Eventually(func(g Gomega) {
			g.Expect(cacheCondition(ctx, g, result.Namespace, "UpstreamReachable").Status).To(Equal(metav1.ConditionTrue))
			g.Expect(cacheCondition(ctx, g, result.Namespace, "VolumeUsable").Status).To(Equal(metav1.ConditionTrue))
		}).WithContext(ctx).Should(Succeed())
		expectSamePod(ctx, pod)
	}, SpecTimeout(5*time.Minute))

	It("accepts rotated credentials during continuous pulls without a failed pull", Label("long"), func(ctx context.Context) {
		pod := cachePod(ctx, "quay.io")
		going := startPulls(ctx, maxPulls, newOf("quay.io"), workers()[0])
		going.waitForMore(ctx, 1)
		By("having the upstream accept the next ones, too")
		private(ctx, "one", "two")
		result = applyShoot(ctx, privateShoot("e2e-two"))
		waitForPassword(ctx, pod, "two")
		By("having the upstream accept the next ones only")
		private(ctx, "two", "")
		going.waitForMore(ctx, 3)
		records := going.end()
		expectNoneFailed("pulls during the rotation", records)
		expectSamePod(ctx, pod)
	}, SpecTimeout(5*time.Minute))

	It("is rejected if its Secret does not exist", func(ctx context.Context) {
		_, err := shoot.Apply(ctx, tb.Cluster, progress, privateShoot("e2e-missing"))
		Expect(err).To(MatchError(ContainSubstring("e2e-missing")))
	}, SpecTimeout(time.Minute))
})

// privateShoot is a Shoot with a cache of quay.io that has the credentials of a Secret.
func privateShoot(secret string) []byte {
	return withResource(shootOf("v1alpha3", "- upstream: quay.io\n  volume:\n    size: 1Gi\n  secretReferenceName: credentials"), "credentials", secret)
}

// createSecret makes a Secret as the owner of a Shoot does, until the container ends.
func createSecret(ctx context.Context, name string, data map[string]string) {
	GinkgoHelper()
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "garden-dev", Name: name},
		Immutable:  new(true),
		StringData: data,
	}
	Expect(client.IgnoreNotFound(kube.Delete(ctx, secret.DeepCopy()))).To(Succeed())
	Eventually(func() error { return kube.Create(ctx, secret.DeepCopy()) }).WithContext(ctx).Should(Succeed())
	DeferCleanup(func(ctx context.Context) {
		Expect(client.IgnoreNotFound(kube.Delete(ctx, secret))).To(Succeed())
	}, NodeTimeout(time.Minute))
}

// waitForPassword waits until the kubelet has given the pod of a cache the password.
func waitForPassword(ctx context.Context, pod *corev1.Pod, password string) {
	GinkgoHelper()
	node, _ := nodeOf(pod)
	file := path.Join("/var/lib/kubelet/pods", string(pod.UID), "volumes/kubernetes.io~secret/config/password")
	Eventually(func(g Gomega) {
		content, err := node.Run(ctx, nil, "cat", file)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(string(content) == password).To(BeTrue(), "the pod has the former one")
	}).WithContext(ctx).WithTimeout(3 * time.Minute).Should(Succeed())
}

// expectSamePod expects that the pod of quay.io is still the one that it was.
func expectSamePod(ctx context.Context, before *corev1.Pod) {
	GinkgoHelper()
	after := cachePod(ctx, "quay.io")
	Expect(after.UID).To(Equal(before.UID))
	Expect(after.Status.ContainerStatuses[0].RestartCount).To(BeZero())
}

// cacheCondition returns a condition of the only cache of the Extension.
func cacheCondition(ctx context.Context, g Gomega, namespace, conditionType string) metav1.Condition {
	extension := &extensionsv1alpha1.Extension{}
	g.Expect(kube.Get(ctx, types.NamespacedName{Namespace: namespace, Name: "registry-cache"}, extension)).To(Succeed())
	status, err := registry.DecodeStatus(extension.Status.ProviderStatus.Raw)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(status.Caches).To(HaveLen(1))
	condition := meta.FindStatusCondition(status.Caches[0].Conditions, conditionType)
	g.Expect(condition).NotTo(BeNil())
	return *condition
}
