// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/shoot"
)

// shootWithTLS is a Shoot whose cache of docker.io speaks https, or http.
func shootWithTLS(tls bool) []byte {
	return shootOf("v1alpha3", fmt.Sprintf("- upstream: docker.io\n  http:\n    tls: %t", tls))
}

var _ = Describe("A cache with TLS", Ordered, Label("tls"), func() {
	var result *shoot.Result
	apply := func(ctx context.Context, tls bool) {
		GinkgoHelper()
		var err error
		result, err = shoot.Apply(ctx, tb.Cluster, progress, shootWithTLS(tls))
		Expect(err).NotTo(HaveOccurred())
	}
	// usedBy waits until the unit of every node uses the cache at its present endpoint.
	usedBy := func(ctx context.Context) {
		GinkgoHelper()
		for _, node := range nodes {
			Eventually(func(g Gomega) {
				hosts, err := pull.Hosts(ctx, node, "docker.io")
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(hosts).To(ContainSubstring(`[host."` + endpoint(result, "docker.io") + `"]`))
			}).WithContext(ctx).Should(Succeed())
		}
	}

	BeforeAll(func(ctx context.Context) {
		Expect(shoot.Delete(ctx, tb.Cluster, progress, shootWithTLS(true))).To(Succeed())
		apply(ctx, true)
		DeferCleanup(func(ctx context.Context) {
			Expect(shoot.Delete(ctx, tb.Cluster, progress, shootWithTLS(true))).To(Succeed())
		}, NodeTimeout(5*time.Minute))
		usedBy(ctx)
	}, NodeTimeout(8*time.Minute))

	It("serves only HTTPS, with a certificate of the Shoot's CA", func(ctx context.Context) {
		Expect(endpoint(result, "docker.io")).To(HavePrefix("https://"))
		Expect(probe(ctx, nodes[0], result, "https", "docker.io")).To(Succeed())
		Expect(probe(ctx, nodes[0], result, "http", "docker.io")).NotTo(Succeed(), "http must not be served beside https")

		reference := newImage(ctx, "docker.io")
		mark := markUpstream(ctx)
		layers := craneLayers(ctx, nodes[0], result, reference)
		for _, layer := range layers {
			Expect(blobTransfers(ctx, mark)).To(HaveKeyWithValue(layer, 1))
		}
		for _, node := range workers()[:2] {
			outcome, err := pull.Measured(ctx, tb.Upstream, node, reference)
			Expect(err).NotTo(HaveOccurred())
			Expect(outcome.FromNodes).To(BeZero(), "no node may ask the upstream: %+v", outcome)
		}
		// The layers for crane, the image's configuration for the first node.
		for digest, count := range blobTransfers(ctx, mark) {
			Expect(count).To(Equal(1), "transfers of %s", digest)
		}
	}, SpecTimeout(3*time.Minute))

	It("keeps its content, and no pull fails, while TLS is disabled and enabled again", func(ctx context.Context) {
		kept := newSample(ctx, "docker.io", small)
		_, err := pull.Measured(ctx, tb.Upstream, workers()[1], kept.tag)
		Expect(err).NotTo(HaveOccurred())
		before := markUpstream(ctx)
		going := startPulls(ctx, maxPulls, newOf("docker.io"), workers()[0])
		for _, tls := range []bool{false, true} {
			apply(ctx, tls)
			Expect(result.Status.CASecretName != nil).To(Equal(tls))
			Expect(strings.HasPrefix(endpoint(result, "docker.io"), "https://")).To(Equal(tls))
			usedBy(ctx)
			for _, layer := range craneLayers(ctx, nodes[0], result, kept.tag) {
				Expect(blobTransfers(ctx, before)).NotTo(HaveKey(layer))
			}
			Expect(pull.Remove(ctx, workers()[1], kept.tag)).To(Succeed())
			took, err := pull.Image(ctx, workers()[1], kept.tag)
			Expect(err).NotTo(HaveOccurred())
			Expect(took).To(BeNumerically("<", 10*time.Second))
			going.waitForMore(ctx, 2)
		}
		expectNoneFailed("pulls while https was switched off and on", going.end())
	}, SpecTimeout(6*time.Minute))

	It("stays usable on every node during a CA rotation", Label("long"), func(ctx context.Context) {
		before := caBundle(ctx, result)
		usedBy(ctx)
		began := time.Now()
		going := startPulls(ctx, maxPulls, newOf("docker.io"), workers()[0])
		for _, phase := range []gardencorev1beta1.CredentialsRotationPhase{
			gardencorev1beta1.RotationPreparing, gardencorev1beta1.RotationPrepared, gardencorev1beta1.RotationCompleting, gardencorev1beta1.RotationCompleted,
		} {
			Expect(shoot.RotateCAs(ctx, tb.Cluster, progress, shootWithTLS(true), phase)).To(Succeed())
			apply(ctx, true)
			if phase == gardencorev1beta1.RotationPreparing {
				Expect(caBundle(ctx, result)).To(And(ContainSubstring(strings.TrimSpace(before)), Not(Equal(before))), "nodes must trust both CAs")
			}
			going.waitForMore(ctx, 2)
		}
		after := caBundle(ctx, result)
		Expect(strings.Count(after, "BEGIN CERTIFICATE")).To(Equal(1))
		Expect(after).NotTo(Equal(before))

		By("waiting until the kubelet has given the cache its new certificate")
		Eventually(func() error { return probe(ctx, nodes[0], result, "https", "docker.io") }).
			WithContext(ctx).WithTimeout(3 * time.Minute).WithPolling(time.Second).Should(Succeed())
		craneLayers(ctx, nodes[0], result, newImage(ctx, "docker.io"))

		expectNoneFailed("pulls while the CA was rotated", going.end())
		for _, node := range nodes {
			Expect(unitLog(ctx, node, began)).To(BeEmpty(), "the unit of %s has something to report", node.Name)
			bundle, err := node.Run(ctx, nil, "cat", "/var/lib/registry-cache/ca.pem")
			Expect(err).NotTo(HaveOccurred())
			Expect(string(bundle)).To(Equal(after))
		}
		outcome, err := pull.Measured(ctx, tb.Upstream, workers()[1], newImage(ctx, "docker.io"))
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.FromNodes).To(BeZero(), "%+v", outcome)
	}, SpecTimeout(8*time.Minute))
})
