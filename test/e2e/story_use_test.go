// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/shoot"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

const usedCaches = `
- upstream: docker.io
  volume:
    size: 5Gi
- upstream: gcr.io
- upstream: quay.io
`

// Sections "How does it work?" and "Gotchas" of the usage document.
var _ = Describe("A Shoot with caches", Ordered, Label("use"), func() {
	var (
		manifest = shootOf("v1alpha3", usedCaches)
		result   *shoot.Result
	)

	BeforeAll(func(ctx context.Context) { result = startShoot(ctx, manifest) }, NodeTimeout(8*time.Minute))

	It("has a cache only for the listed upstreams: gcr.io does not include eu.gcr.io", func(ctx context.Context) {
		node := workers()[0]
		listed := newSample(ctx, "gcr.io", small)
		outcome, err := pull.Measured(ctx, tb.Upstream, node, listed.tag)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.FromNodes).To(BeZero(), "%+v", outcome)
		for _, host := range []string{"eu.gcr.io", "us.gcr.io", "asia.gcr.io"} {
			hosts, err := pull.Hosts(ctx, node, host)
			Expect(err).NotTo(HaveOccurred())
			Expect(hosts).To(BeEmpty())
			outcome, err := pull.Measured(ctx, tb.Upstream, node, newSample(ctx, host, small).tag)
			Expect(err).NotTo(HaveOccurred())
			Expect(outcome.FromCache).To(BeZero(), "%+v", outcome)
		}

		By("asking the cache of gcr.io for what belongs to eu.gcr.io")
		url := endpoint(result, "gcr.io") + "/v2/" + manifestPath(listed.tag)
		for namespace, want := range map[string]int{"gcr.io": http.StatusOK, "eu.gcr.io": http.StatusNotFound} {
			answer, err := askCache(ctx, node, result, http.MethodHead, url+"?ns="+namespace)
			Expect(err).NotTo(HaveOccurred())
			Expect(answer.StatusCode).To(Equal(want), namespace)
		}
	}, SpecTimeout(3*time.Minute))

	DescribeTable("fetches each blob once, by tag and by digest, for crane and containerd, from images",
		func(ctx context.Context, shape images.Spec) {
			image := newSample(ctx, "docker.io", shape)
			mark := markUpstream(ctx)
			first, second := workers()[0], workers()[1]
			DeferCleanup(func(ctx context.Context) {
				Expect(pull.Remove(ctx, first, image.tag)).To(Succeed())
				Expect(pull.Remove(ctx, second, image.digest)).To(Succeed())
			}, NodeTimeout(time.Minute))

			By("crane, by tag and by digest")
			transport, done := cacheTransport(ctx, first, result, schemeOf(result, "docker.io"))
			defer done()
			for _, reference := range []string{image.tag, image.digest} {
				Expect(pullByCrane(ctx, transport, endpoint(result, "docker.io"), reference)).To(Succeed())
			}

			By("containerd, by tag")
			byTag, err := pull.Measured(ctx, tb.Upstream, first, image.tag)
			Expect(err).NotTo(HaveOccurred())

			By("containerd, by digest")
			byDigest, err := pull.Measured(ctx, tb.Upstream, second, image.digest)
			Expect(err).NotTo(HaveOccurred())
			AddReportEntry("durations", byTag.Duration.Round(time.Millisecond).String()+" by tag, "+byDigest.Duration.Round(time.Millisecond).String()+" by digest")

			Expect(byTag.FromNodes).To(BeZero(), "%+v", byTag)
			Expect(byDigest.Requests).To(BeZero(), "what is there needs no upstream: %+v", byDigest)
			transfers := blobTransfers(ctx, mark)
			Expect(len(transfers)).To(BeNumerically(">", len(shape.LayerSizes)), "layers and config")
			for digest, count := range transfers {
				Expect(count).To(Equal(1), "transfers of %s", digest)
			}
		},
		Entry("with Docker media types and gzip", images.Spec{LayerSizes: small.LayerSizes}, SpecTimeout(2*time.Minute)),
		Entry("with OCI media types and gzip", images.Spec{LayerSizes: small.LayerSizes, Format: images.OCI}, SpecTimeout(2*time.Minute)),
		Entry("with OCI media types and zstd", images.Spec{LayerSizes: small.LayerSizes, Format: images.OCI, Compression: images.Zstd}, SpecTimeout(2*time.Minute)),
		Entry("with several platforms in a Docker manifest list", images.Spec{LayerSizes: small.LayerSizes, Platforms: platforms}, SpecTimeout(2*time.Minute)),
		Entry("with several platforms in an OCI index", images.Spec{LayerSizes: small.LayerSizes, Platforms: platforms, Format: images.OCI}, SpecTimeout(2*time.Minute)),
		Entry("with 40 layers", images.Spec{LayerSizes: slices.Repeat([]int64{16 << 10}, 40)}, SpecTimeout(3*time.Minute)),
	)

	It("fetches an image of 1 GiB once from the upstream", Label("long"), func(ctx context.Context) {
		// The same content in every run, or the upstream's folder would grow by a gigabyte with each.
		image := newSample(ctx, "docker.io", images.Spec{Seed: 20, LayerSizes: []int64{700 << 20, 300 << 20, 24 << 20}})
		mark := markUpstream(ctx)
		for i, reference := range []string{image.tag, image.digest} {
			node := workers()[i]
			DeferCleanup(func(ctx context.Context) { Expect(pull.Remove(ctx, node, reference)).To(Succeed()) }, NodeTimeout(time.Minute))
			outcome, err := pull.Measured(ctx, tb.Upstream, node, reference)
			Expect(err).NotTo(HaveOccurred())
			Expect(outcome.FromNodes).To(BeZero(), "%+v", outcome)
			AddReportEntry("duration", fmt.Sprintf("%s from %s", outcome.Duration.Round(time.Millisecond), outcome.ServedBy()))
		}
		// A slow layer is transferred in parts.
		Expect(blobTransfers(ctx, mark)).To(HaveLen(4))
		expectSentOnce(ctx, mark, 1<<30)
	}, SpecTimeout(6*time.Minute))

	It("fetches each blob once if all nodes pull at the same time", func(ctx context.Context) {
		DeferCleanup(func(ctx context.Context) {
			Expect(tb.Upstream.Shape(ctx, upstream.Shaping{})).To(Succeed())
		}, NodeTimeout(time.Minute))
		// Three seconds for the image, in which all nodes have asked for it.
		Expect(tb.Upstream.Shape(ctx, upstream.Shaping{BytesPerSecond: 4 << 20})).To(Succeed())
		image := newSample(ctx, "docker.io", images.Spec{LayerSizes: []int64{12 << 20}})
		mark := markUpstream(ctx)
		group, groupCtx := errgroup.WithContext(ctx)
		for _, node := range nodes {
			DeferCleanup(func(ctx context.Context) { Expect(pull.Remove(ctx, node, image.tag)).To(Succeed()) }, NodeTimeout(time.Minute))
			group.Go(func() error {
				_, err := pull.Image(groupCtx, node, image.tag)
				return err
			})
		}
		Expect(group.Wait()).To(Succeed())
		Expect(requestsOfNodes(ctx, mark)).To(BeEmpty())
		for digest, count := range blobTransfers(ctx, mark) {
			Expect(count).To(Equal(1), "transfers of %s", digest)
		}
	}, SpecTimeout(2*time.Minute))

	It("preserves foreign containerd configuration on its nodes", func(ctx context.Context) {
		node, file, began := workers()[0], pull.HostsDir+"/quay.io/hosts.toml", time.Now()
		const foreign = "server = \"https://quay.io\"\n"
		DeferCleanup(func(ctx context.Context) {
			_, err := node.Run(ctx, nil, "rm", "-f", file)
			Expect(err).NotTo(HaveOccurred())
		}, NodeTimeout(time.Minute))
		_, err := node.Run(ctx, strings.NewReader(foreign), "cp", "/dev/stdin", file)
		Expect(err).NotTo(HaveOccurred())
		// Several rounds of the unit.
		Consistently(func(ctx context.Context) (string, error) { return pull.Hosts(ctx, node, "quay.io") }).WithContext(ctx).
			WithTimeout(7*time.Second).WithPolling(time.Second).Should(Equal(foreign), "it is somebody else's")
		Expect(unitLog(ctx, node, began)).To(ContainSubstring("quay.io: not touched"))
		outcome, err := pull.Measured(ctx, tb.Upstream, node, newSample(ctx, "quay.io", small).tag)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.FromCache).To(BeZero(), "%+v", outcome)

		By("taking it away")
		_, err = node.Run(ctx, nil, "rm", file)
		Expect(err).NotTo(HaveOccurred())
		Expect(pull.WaitForMirror(ctx, node, "quay.io")).To(Succeed())
	}, SpecTimeout(2*time.Minute))

	It("adds one upstream and removes another while the other caches keep serving", func(ctx context.Context) {
		node, kept := workers()[0], newSample(ctx, "docker.io", small)
		_, err := pull.Measured(ctx, tb.Upstream, node, kept.tag)
		Expect(err).NotTo(HaveOccurred())
		pod, claim := cachePod(ctx, "docker.io"), claimOf(ctx, "docker.io")
		going := startPulls(ctx, 500, func(ctx context.Context, _ int) (string, error) { return kept.tag, nil }, workers()[1])

		By("adding ghcr.io and removing quay.io")
		changed := strings.Replace(usedCaches, "- upstream: quay.io", "- upstream: ghcr.io", 1)
		result = applyShoot(ctx, shootOf("v1alpha3", changed))
		for host, cached := range map[string]bool{"ghcr.io": true, "quay.io": false, "docker.io": true} {
			if !cached {
				Expect(pull.WaitForNoMirror(ctx, node, host)).To(Succeed())
			}
			outcome, err := pull.Measured(ctx, tb.Upstream, node, newSample(ctx, host, small).tag)
			Expect(err).NotTo(HaveOccurred())
			Expect(outcome.FromCache > 0).To(Equal(cached), "%+v", outcome)
			Expect(outcome.FromNodes > 0).To(Equal(!cached), "%+v", outcome)
		}
		Expect(listClaims(ctx, "quay.io")).To(BeEmpty())

		By("looking at the cache that was there all the time")
		going.waitForMore(ctx, 1)
		records := going.end()
		AddReportEntry("pulls meanwhile", describePulls(records, 0))
		for _, record := range records {
			Expect(record.err).NotTo(HaveOccurred())
		}
		Expect(cachePod(ctx, "docker.io").UID).To(Equal(pod.UID))
		Expect(claimOf(ctx, "docker.io").UID).To(Equal(claim.UID))
		again, err := pull.Measured(ctx, tb.Upstream, node, kept.digest)
		Expect(err).NotTo(HaveOccurred())
		Expect(again.Requests).To(BeZero(), "%+v", again)
	}, SpecTimeout(6*time.Minute))

	DescribeTable("pulls from the upstreams when the extension is",
		func(ctx context.Context, edit func(string) string) {
			edited := edit(string(manifest))
			Expect(edited).NotTo(Equal(string(manifest)))
			without, err := shoot.Apply(ctx, tb.Cluster, progress, []byte(edited))
			Expect(err).NotTo(HaveOccurred())
			Expect(without.Status).To(BeNil())
			for _, node := range workers() {
				hosts, err := pull.Hosts(ctx, node, "docker.io")
				Expect(err).NotTo(HaveOccurred())
				Expect(pull.UsesMirror(hosts)).To(BeFalse(), hosts)
				expectDirect(ctx, node)
			}
			Eventually(func() []corev1.PersistentVolumeClaim { return listClaims(ctx, "docker.io") }).WithContext(ctx).Should(BeEmpty())

			By("enabling it again")
			result = applyShoot(ctx, manifest)
			outcome, err := pull.Measured(ctx, tb.Upstream, workers()[0], newSample(ctx, "docker.io", small).tag)
			Expect(err).NotTo(HaveOccurred())
			Expect(outcome.FromNodes).To(BeZero(), "%+v", outcome)
		},
		Entry("disabled", replace("- type: registry-cache", "- type: registry-cache\n    disabled: true"), SpecTimeout(5*time.Minute)),
		Entry("removed", noExtensions, SpecTimeout(5*time.Minute)),
	)
})

// platforms are those of the nodes and others.
var platforms = []string{"linux/amd64", "linux/arm64/v8", "linux/arm/v7"}

// noExtensions cuts the list of extensions off.
func noExtensions(manifest string) string {
	before, _, _ := strings.Cut(manifest, "  extensions:")
	return strings.TrimSuffix(strings.TrimRight(before, "\n"), "spec:") + "spec: {}\n"
}

// expectDirect fails unless an image comes from the upstream, past any cache.
func expectDirect(ctx context.Context, node kindcluster.Node) pull.Outcome {
	GinkgoHelper()
	outcome, err := pull.Measured(ctx, tb.Upstream, node, newSample(ctx, "docker.io", small).tag)
	Expect(err).NotTo(HaveOccurred())
	Expect(outcome.FromCache).To(BeZero(), "%+v", outcome)
	return outcome
}

// listClaims returns the claims of the cache of an upstream, found by the label of the document.
func listClaims(ctx context.Context, upstreamHost string) []corev1.PersistentVolumeClaim {
	GinkgoHelper()
	claims := &corev1.PersistentVolumeClaimList{}
	Expect(kube.List(ctx, claims, client.InNamespace("kube-system"), client.MatchingLabels{"upstream-host": upstreamHost})).To(Succeed())
	return claims.Items
}

// claimOf returns the only claim of a cache.
func claimOf(ctx context.Context, upstreamHost string) corev1.PersistentVolumeClaim {
	GinkgoHelper()
	claims := listClaims(ctx, upstreamHost)
	Expect(claims).To(HaveLen(1))
	return claims[0]
}
