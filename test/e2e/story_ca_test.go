// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/registry-cache/extension/test/testbed/product"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/shoot"
	"github.com/registry-cache/extension/test/testbed/upstream/container"
)

// The CA of the upstream is in no public CA bundle and not in the one of the operator. The nodes trust it.
var _ = Describe("A cache of an upstream with a private CA", Ordered, Label("ca"), func() {
	const secret = "e2e-roots"
	var result *shoot.Result

	BeforeAll(func(ctx context.Context) {
		roots, err := container.CACertificate()
		Expect(err).NotTo(HaveOccurred())
		// The next story expects the product as it is by default.
		DeferCleanup(func(ctx context.Context) { installEngine(ctx, "") }, NodeTimeout(5*time.Minute))
		createSecret(ctx, secret, map[string]string{"bundle.crt": string(roots)})
		Expect(product.Install(ctx, tb.Cluster, progress, product.Options{})).To(Succeed())
		result = startShoot(ctx, shootOf("v1alpha3", "- upstream: quay.io\n  volume:\n    size: 1Gi"))
	}, NodeTimeout(12*time.Minute))

	It("reports an untrusted certificate while nodes fall back to the upstream", func(ctx context.Context) {
		outcome, err := pull.Measured(ctx, tb.Upstream, workers()[0], newSample(ctx, "quay.io", small).tag)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.FromCache).To(BeZero(), "%+v", outcome)
		Eventually(func(g Gomega) {
			condition := cacheCondition(ctx, g, result.Namespace, "UpstreamReachable")
			g.Expect(condition.Status).To(Equal(metav1.ConditionFalse))
			g.Expect(condition.Reason).To(Equal("CertificateNotTrusted"))
			g.Expect(condition.Message).To(ContainSubstring("caBundleSecretReferenceName"))
		}).WithContext(ctx).Should(Succeed())
		// The time of BeforeAll counts.
	}, SpecTimeout(15*time.Minute))

	It("serves pulls after the Shoot owner adds the CA in a Secret", func(ctx context.Context) {
		result = applyShoot(ctx, withResource(shootOf("v1alpha3", "- upstream: quay.io\n  volume:\n    size: 1Gi\n  caBundleSecretReferenceName: roots"), "roots", secret))
		Eventually(func(g Gomega) {
			g.Expect(cacheCondition(ctx, g, result.Namespace, "UpstreamReachable").Status).To(Equal(metav1.ConditionTrue))
		}).WithContext(ctx).WithTimeout(3 * time.Minute).Should(Succeed())
		waitForCaches(ctx, result)
		outcome, err := pull.Measured(ctx, tb.Upstream, workers()[0], newSample(ctx, "quay.io", small).tag)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.FromNodes).To(BeZero(), "%+v", outcome)
	}, SpecTimeout(6*time.Minute))
})

// withResource lets a Shoot refer to a Secret of its owner by a name.
func withResource(manifest []byte, name, secret string) []byte {
	resources := "spec:\n  resources:\n  - name: " + name + "\n    resourceRef:\n      apiVersion: v1\n      kind: Secret\n      name: " + secret + "\n"
	return []byte(strings.Replace(string(manifest), "spec:\n", resources, 1))
}
