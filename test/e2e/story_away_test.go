// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/shoot"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// What a cache that is away may add to a pull.
const (
	// withdrawn is when nodes have taken a cache out that does not answer: they ask every two seconds, and wait for one.
	withdrawn = 3 * time.Second
	// unreachable is withdrawn and dial_timeout, 200 ms, for each of the requests that a pull makes one after the other:
	// tag, index, manifest, config and layers.
	unreachable = withdrawn + 7*200*time.Millisecond
	// silent is withdrawn and the 30 s that containerd (2.3 and later) waits for a header. Only a pull that began before
	// the cache was taken out meets it, for the tag and the manifest, or for the manifest and what comes with the layers.
	silent = withdrawn + 2*30*time.Second
	// noise is what a machine with two processors adds that does all of this at once.
	noise = 5 * time.Second
)

// Section "High-availability" and the limitations of the usage document: "containerd's image pull operations are not
// affected".
var _ = Describe("Pulls succeed", Ordered, Label("away", "long"), func() {
	var (
		result *shoot.Result
		warm   sample
		direct time.Duration
	)

	BeforeAll(func(ctx context.Context) {
		result = startShoot(ctx, shootOf("v1alpha3", "- upstream: docker.io"))
		warm = newSample(ctx, "docker.io", small)
		for _, node := range workers() {
			_, err := pull.Measured(ctx, tb.Upstream, node, warm.tag)
			Expect(err).NotTo(HaveOccurred())
		}
		By("measuring the direct way: images of a registry without a cache")
		for range 3 {
			outcome, err := pull.Measured(ctx, tb.Upstream, workers()[0], newSample(ctx, "gcr.io", small).tag)
			Expect(err).NotTo(HaveOccurred())
			Expect(outcome.FromCache).To(BeZero())
			direct = max(direct, outcome.Duration)
		}
	}, NodeTimeout(8*time.Minute))

	// A new image comes from the upstream, with or without a cache; the other one is cached.
	next := func(ctx context.Context, n int) (string, error) {
		if n%2 == 1 {
			return warm.tag, nil
		}
		image, err := makeSample(ctx, "docker.io", small)
		return image.tag, err
	}
	// during pulls on both workers before, while and after something happens, and expects all pulls to succeed.
	during := func(ctx context.Context, what string, limit time.Duration, happens func(going *pulls)) {
		GinkgoHelper()
		going := startPulls(ctx, maxPulls, next, workers()...)
		going.waitForMore(ctx, 2)
		happens(going)
		records := going.end()
		AddReportEntry("direct", direct.Round(time.Millisecond).String())
		expectPulled(what, direct+limit+noise, records)
	}
	withoutMirror := func(ctx context.Context) {
		GinkgoHelper()
		for _, node := range workers() {
			Expect(pull.WaitForNoMirror(ctx, node, "docker.io")).To(Succeed())
		}
	}
	back := func(ctx context.Context) {
		GinkgoHelper()
		waitForReadyCache(ctx, "docker.io", "")
		waitForCaches(ctx, result)
		outcome, err := pull.Measured(ctx, tb.Upstream, workers()[1], newSample(ctx, "docker.io", small).tag)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.FromNodes).To(BeZero(), "the cache must be used again: %+v", outcome)
	}

	It("while the cache pod is killed", func(ctx context.Context) {
		during(ctx, "pod killed", unreachable, func(*pulls) {
			pod := cachePod(ctx, "docker.io")
			Expect(kube.Delete(ctx, pod, client.GracePeriodSeconds(0))).To(Succeed())
			waitForReadyCache(ctx, "docker.io", string(pod.UID))
			waitForCaches(ctx, result)
		})
		back(ctx)
	}, SpecTimeout(5*time.Minute))

	It("while the cache has no pod", func(ctx context.Context) {
		DeferCleanup(func(ctx context.Context) { scale(ctx, "docker.io", 1) }, NodeTimeout(time.Minute))
		during(ctx, "scaled to 0 and back", unreachable, func(going *pulls) {
			scale(ctx, "docker.io", 0)
			withoutMirror(ctx)
			going.waitForMore(ctx, 2)
			scale(ctx, "docker.io", 1)
			waitForCaches(ctx, result)
		})
		back(ctx)
	}, SpecTimeout(5*time.Minute))

	It("while the node of the cache pod is drained", func(ctx context.Context) {
		its, _ := nodeOf(cachePod(ctx, "docker.io"))
		during(ctx, "node drained", unreachable, func(going *pulls) {
			drain(ctx, its)
			withoutMirror(ctx) // the volume is on that node
			going.waitForMore(ctx, 2)
			uncordon(ctx, its)
			waitForCaches(ctx, result)
		})
		back(ctx)
	}, SpecTimeout(6*time.Minute))

	It("while a node cannot reach the cache pod", func(ctx context.Context) {
		pod := cachePod(ctx, "docker.io")
		its, other := nodeOf(pod)
		fresh := newSample(ctx, "docker.io", small)
		during(ctx, "network cut", unreachable, func(going *pulls) {
			cutOff(ctx, other, pod.Status.PodIP, dropped)
			// This one begins before the node can have noticed.
			took, err := pull.Image(ctx, other, fresh.tag)
			Expect(err).NotTo(HaveOccurred())
			Expect(took).To(BeNumerically("<=", direct+unreachable+noise), "network cut: the pull that begins at once")
			Expect(pull.WaitForNoMirror(ctx, other, "docker.io")).To(Succeed())
			hosts, err := pull.Hosts(ctx, its, "docker.io")
			Expect(err).NotTo(HaveOccurred())
			Expect(pull.UsesMirror(hosts)).To(BeTrue(), "the other nodes go on using it: %s", hosts)
			going.waitForMore(ctx, 2)
			restore(ctx, other)
			waitForCaches(ctx, result)
		})
		back(ctx)
	}, SpecTimeout(5*time.Minute))

	It("while the cache server hangs", func(ctx context.Context) {
		pod := cachePod(ctx, "docker.io")
		during(ctx, "server hangs", silent, func(going *pulls) {
			freezeCache(ctx, pod)
			withoutMirror(ctx)
			going.waitForMore(ctx, 2) // also those that were waiting for the server when it stopped have ended
			signalCache(ctx, pod, "SIGCONT")
			waitForCaches(ctx, result)
		})
		back(ctx)
	}, SpecTimeout(6*time.Minute))

	DescribeTable("from the cache while the upstream",
		func(ctx context.Context, limit time.Duration, fault upstream.Fault) {
			going := startPulls(ctx, maxPulls, func(_ context.Context, n int) (string, error) {
				return []string{warm.tag, warm.digest}[n%2], nil
			}, workers()...)
			going.waitForMore(ctx, 2)
			mark := markUpstream(ctx)
			fault.Host = "docker.io"
			breakUpstream(ctx, fault)
			// Twice the time for which a tag is not looked up again.
			Eventually(func(g Gomega, ctx context.Context) {
				answer, err := askCache(ctx, nodes[0], result, http.MethodHead, endpoint(result, "docker.io")+"/v2/"+manifestPath(warm.tag))
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(answer.Header.Get("Warning")).To(HavePrefix("111 "))
			}).WithContext(ctx).WithTimeout(time.Minute).Should(Succeed())
			going.waitForMore(ctx, 4)
			broken := requestsSince(ctx, mark)
			healUpstream(ctx)
			records := going.end()
			AddReportEntry("requests at the broken upstream", fmt.Sprint(broken))
			AddReportEntry("direct", direct.Round(time.Millisecond).String())
			expectPulled("upstream broken", direct+limit+noise, records)
			Expect(requestsOfNodes(ctx, mark)).To(BeEmpty(), "the cache must serve what it has")
		},
		// The cache waits up to 25 s for a response header of the upstream. Only the tag needs one; manifests and blobs are
		// stored.
		Entry("hangs", 25*time.Second, upstream.Fault{Action: upstream.Hang}, SpecTimeout(4*time.Minute)),
		Entry("answers 429", time.Duration(0), upstream.Fault{Action: upstream.Answer, Status: http.StatusTooManyRequests, RetryAfter: 60}, SpecTimeout(3*time.Minute)),
		Entry("answers 503", time.Duration(0), upstream.Fault{Action: upstream.Answer, Status: http.StatusServiceUnavailable}, SpecTimeout(3*time.Minute)),
		Entry("closes connections", time.Duration(0), upstream.Fault{Action: upstream.Cut}, SpecTimeout(3*time.Minute)),
	)
})
