// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sync/errgroup"

	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/shoot"
)

// fullCache never deletes anything, so that it cannot make room either.
const fullCache = `
- upstream: docker.io
  volume:
    size: %s
  garbageCollection:
    ttl: 0s
`

// "When there is no available disk space, the registry cache continues to respond to requests. [...] it is simply acting
// as a proxy [...] The disk has to be resized to ensure that the registry cache continues to cache images."
var _ = Describe("A cache with a full volume", Ordered, Label("full", "long"), func() {
	const (
		byCrane, atOnce = 160, 4
		byContainerd    = 20 // on each of two nodes
	)
	var (
		result *shoot.Result
		shape  = images.Spec{LayerSizes: []int64{5 << 20, 3 << 20, 10}}
	)

	BeforeAll(func(ctx context.Context) {
		result = startShoot(ctx, shootOf("v1alpha3", fmt.Sprintf(fullCache, "64Mi")))
	}, NodeTimeout(8*time.Minute))

	It("serves 200 pulls by pass-through without a failure or corrupt content, and stores content again after volume expansion", func(ctx context.Context) {
		samples := make([]sample, 20)
		for i := range samples {
			samples[i] = newSample(ctx, "docker.io", shape)
		}
		node := workers()[0]
		transport, done := cacheTransport(ctx, node, result, schemeOf(result, "docker.io"))
		defer done()

		By("pulling by crane through the cache, which has nothing to fall back to")
		var mu sync.Mutex
		var records []pullRecord
		group, groupCtx := errgroup.WithContext(ctx)
		group.SetLimit(atOnce)
		for i := range byCrane {
			group.Go(func() error {
				record := pullRecord{node: node.Name, reference: samples[i%len(samples)].tag, start: time.Now()}
				if i%2 == 1 {
					record.reference = samples[i%len(samples)].digest
				}
				record.err = pullByCrane(groupCtx, transport, endpoint(result, "docker.io"), record.reference)
				record.took = time.Since(record.start)
				mu.Lock()
				defer mu.Unlock()
				records = append(records, record)
				return nil
			})
		}
		Expect(group.Wait()).To(Succeed())
		expectPulled("pulls by crane", time.Minute, records)
		Expect(records).To(HaveLen(byCrane))

		By("pulling by containerd, which verifies the digests as well")
		mark := markUpstream(ctx)
		going := startPulls(ctx, byContainerd, func(_ context.Context, n int) (string, error) { return samples[n].tag, nil }, workers()[:2]...)
		expectPulled("pulls by containerd", time.Minute, going.wait(ctx))
		Expect(requestsOfNodes(ctx, mark)).To(BeEmpty(), "the cache must serve them, not the way around it")

		By("looking at the cache: full, nothing deleted, what did not fit was passed through")
		report := inspectCache(ctx, "docker.io")
		AddReportEntry("volume", fmt.Sprintf("%.0f %% of 64 MiB used, %d of %d images complete", report.Volume.UsedPercent, len(report.complete()), len(samples)))
		Expect(len(report.complete())).To(And(BeNumerically(">", 0), BeNumerically("<", len(samples))))
		Expect(metric(ctx, "docker.io", "registry_cache_requests_total", "outcome", "pass-through")).To(BeNumerically(">", 0))
		Expect(metric(ctx, "docker.io", "registry_cache_evictions_total")).To(BeZero())
		Expect(cachePod(ctx, "docker.io").Status.ContainerStatuses[0].RestartCount).To(BeZero())

		By("enlarging it in the Shoot")
		result = applyShoot(ctx, shootOf("v1alpha3", fmt.Sprintf(fullCache, "512Mi")))
		Eventually(func(ctx context.Context) int64 { return volumeSize(ctx, "docker.io") }).WithContext(ctx).
			WithTimeout(3 * time.Minute).Should(BeNumerically(">", 400<<20))
		// The controller sees the larger volume within 30 s, and the kubelet gives the pod the larger storage.size within 2 minutes.
		Eventually(func(ctx context.Context) float64 {
			return metric(ctx, "docker.io", "registry_cache_volume_limit_bytes")
		}).WithContext(ctx).
			WithTimeout(4 * time.Minute).Should(BeNumerically(">", 400<<20))
		image := newSample(ctx, "docker.io", shape)
		_, err := pull.Measured(ctx, tb.Upstream, workers()[0], image.tag)
		Expect(err).NotTo(HaveOccurred())
		outcome, err := pull.Measured(ctx, tb.Upstream, workers()[1], image.digest)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.Requests).To(BeZero(), "it must be cached: %+v", outcome)
		for _, reference := range samples {
			Expect(pullByCrane(ctx, transport, endpoint(result, "docker.io"), reference.tag)).To(Succeed())
		}
		Expect(inspectCache(ctx, "docker.io").complete()).To(HaveLen(len(samples)+1), "all of them fit now")
	}, SpecTimeout(12*time.Minute))
})
