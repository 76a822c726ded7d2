// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/shoot"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

const servedCaches = `
- upstream: docker.io
- upstream: quay.io
`

// "On subsequent requests, the pull-through cache is able to serve the image from its own storage."
var _ = Describe("A cache", Ordered, Label("served"), func() {
	var (
		result        *shoot.Result
		image         sample
		first, second kindcluster.Node
	)

	BeforeAll(func(ctx context.Context) {
		result = startShoot(ctx, shootOf("v1alpha3", servedCaches))
		image = newSample(ctx, "docker.io", images.Spec{LayerSizes: []int64{1 << 20, 512 << 10}, Platforms: platforms})
		first, second = workers()[0], workers()[1]
		for _, reference := range []string{image.tag, images.SampleQuay} {
			_, err := pull.Measured(ctx, tb.Upstream, first, reference)
			Expect(err).NotTo(HaveOccurred())
		}
	}, NodeTimeout(8*time.Minute))

	It("serves an image to a second node without another fetch", func(ctx context.Context) {
		outcome, err := pull.Measured(ctx, tb.Upstream, second, image.tag)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.FromNodes).To(BeZero(), "%+v", outcome)
		Expect(outcome.BlobRequests).To(BeZero(), "%+v", outcome)
		AddReportEntry("durations", fmt.Sprint(outcome.Duration.Round(time.Millisecond)))
	}, SpecTimeout(2*time.Minute))

	It("serves stored images by tag, by digest and to Pods while the upstream is unreachable; other images fail as without a cache", func(ctx context.Context) {
		fresh := map[string]sample{"docker.io": newSample(ctx, "docker.io", small), "gcr.io": newSample(ctx, "gcr.io", small)}
		address := upstreamAddress(ctx)
		for _, node := range nodes {
			cutOff(ctx, node, address, rejected)
		}
		mark := markUpstream(ctx)

		By("pulling what is cached")
		for _, node := range []kindcluster.Node{first, second} {
			for _, reference := range []string{image.digest, image.tag} {
				outcome, err := pull.Measured(ctx, tb.Upstream, node, reference)
				Expect(err).NotTo(HaveOccurred())
				AddReportEntry("pull without upstream", fmt.Sprintf("%s on %s: %s", reference, node.Name, outcome.Duration.Round(time.Millisecond)))
			}
		}

		By("running what is cached, with imagePullPolicy Always")
		Expect(pull.Remove(ctx, second, images.SampleQuay)).To(Succeed())
		runToReady(ctx, "sample-served", second.Name, images.SampleQuay)

		By("looking at the answers, which say that they are stale")
		stale := func(ctx context.Context) float64 {
			return metric(ctx, "docker.io", "registry_cache_requests_total", "kind", "manifest", "outcome", "stale")
		}
		before := stale(ctx)
		// A tag that was looked up less than ten seconds ago is not stale.
		Eventually(func(g Gomega, ctx context.Context) {
			answer, err := askCache(ctx, first, result, http.MethodHead, endpoint(result, "docker.io")+"/v2/"+manifestPath(image.tag))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(answer.StatusCode).To(Equal(http.StatusOK))
			g.Expect(answer.Header.Get("Warning")).To(HavePrefix("111 "))
		}).WithContext(ctx).WithTimeout(time.Minute).Should(Succeed())
		Expect(stale(ctx)).To(BeNumerically(">", before))
		answer, err := askCache(ctx, first, result, http.MethodHead, endpoint(result, "docker.io")+"/v2/"+manifestPath(image.digest))
		Expect(err).NotTo(HaveOccurred())
		Expect(answer.StatusCode).To(Equal(http.StatusOK))
		Expect(answer.Header.Get("Warning")).To(BeEmpty(), "a digest cannot become stale")

		By("pulling what is not cached, with a cache and without one")
		for host, image := range fresh {
			start := time.Now()
			_, err := pull.Image(ctx, first, image.tag)
			AddReportEntry("failure", fmt.Sprintf("%s: %s: %v", host, time.Since(start).Round(time.Millisecond), err))
			// Of several hosts that fail containerd names the one that got furthest: the cache, if there is one. Where the
			// cache has a connection left from before, nobody answers on it, instead of refusing.
			Expect(err).To(MatchError(Or(ContainSubstring("connection refused"), ContainSubstring("502 Bad Gateway"), ContainSubstring("504 Gateway Timeout"))))
		}

		Expect(requestsSince(ctx, mark)).To(BeZero(), "nothing may have reached the upstream")

		By("bringing the upstream back")
		for _, node := range nodes {
			restore(ctx, node)
		}
		outcome, err := pull.Measured(ctx, tb.Upstream, first, fresh["docker.io"].tag)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.FromNodes).To(BeZero(), "%+v", outcome)
	}, SpecTimeout(6*time.Minute))

	It("lets containerd fall back to the upstream for an image that the cache cannot fetch", func(ctx context.Context) {
		image := newSample(ctx, "docker.io", small)
		breakUpstream(ctx, upstream.Fault{Host: "docker.io", Action: upstream.Answer, Status: http.StatusServiceUnavailable})
		mark := markUpstream(ctx)
		_, err := pull.Image(ctx, first, image.tag)
		AddReportEntry("error", fmt.Sprint(err))
		Expect(err).To(HaveOccurred())
		Expect(requestsOfNodes(ctx, mark)).NotTo(BeEmpty(), "containerd must have asked the upstream itself")
		healUpstream(ctx)
		outcome, err := pull.Measured(ctx, tb.Upstream, first, image.tag)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.FromNodes).To(BeZero(), "%+v", outcome)
	}, SpecTimeout(2*time.Minute))

	It("discards content with a wrong digest and fetches it again", func(ctx context.Context) {
		image := newSample(ctx, "docker.io", small)
		transport, done := cacheTransport(ctx, first, result, schemeOf(result, "docker.io"))
		defer done()
		breakUpstream(ctx, upstream.Fault{Host: "docker.io", Kind: upstream.Blob, Action: upstream.Corrupt, AfterBytes: 10})
		Expect(pullByCrane(ctx, transport, endpoint(result, "docker.io"), image.tag)).NotTo(Succeed())
		healUpstream(ctx)
		Expect(pullByCrane(ctx, transport, endpoint(result, "docker.io"), image.tag)).To(Succeed(), "the right bytes must be fetched again")
		outcome, err := pull.Measured(ctx, tb.Upstream, second, image.digest)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.FromNodes).To(BeZero(), "%+v", outcome)
	}, SpecTimeout(2*time.Minute))

	It("forwards the upstream's error for an image that does not exist", func(ctx context.Context) {
		var messages []string
		for _, host := range []string{"docker.io", "gcr.io"} {
			_, err := pull.Image(ctx, first, host+"/e2e/sample:none")
			Expect(err).To(MatchError(ContainSubstring("not found")))
			messages = append(messages, err.Error())
		}
		AddReportEntry("errors with and without a cache", messages)
	}, SpecTimeout(2*time.Minute))
})

// requestsSince counts what the upstream got since the mark.
func requestsSince(ctx context.Context, mark int64) int {
	GinkgoHelper()
	requests, err := tb.Upstream.Requests(ctx, mark)
	Expect(err).NotTo(HaveOccurred())
	return len(requests)
}
