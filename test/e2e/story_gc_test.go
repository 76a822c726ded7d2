// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/shoot"
)

const (
	// ttl is that of the caches here, and checkInterval how often a server looks for what has expired.
	ttl           = time.Minute
	checkInterval = 10 * time.Second
	// restartTime is what a pod that is replaced may take until its server looks again.
	restartTime = time.Minute
)

const minuteCaches = `
- upstream: docker.io
  garbageCollection:
    ttl: 1m
- upstream: quay.io
  garbageCollection:
    ttl: 1m
`

// In v1alpha1 the time to live is 7 days, and can be switched off.
const documentCaches = `
- upstream: docker.io
  garbageCollection:
    enabled: false
- upstream: quay.io
`

// Section "Garbage Collection" of the usage document. In this project the TTL starts with the last use of an image; in
// the document it starts when the image is stored.
var _ = Describe("Garbage collection", Ordered, Label("gc", "long"), func() {
	var (
		result *shoot.Result
		node   kindcluster.Node
	)

	BeforeAll(func(ctx context.Context) {
		result = startShoot(ctx, shootOf("v1alpha3", minuteCaches))
		node = workers()[0]
	}, NodeTimeout(8*time.Minute))

	It("deletes images after their TTL and keeps images in use, also across a restart of the pod", func(ctx context.Context) {
		unused, used := newSample(ctx, "docker.io", small), newSample(ctx, "docker.io", small)
		for _, image := range []sample{unused, used} {
			_, err := pull.Measured(ctx, tb.Upstream, node, image.tag)
			Expect(err).NotTo(HaveOccurred())
		}
		begin := time.Now()
		use(ctx, node, result, used.digest)
		Expect(inspectCache(ctx, "docker.io").complete()).To(ContainElements(tagOf(unused.tag), tagOf(used.tag)))

		deletePod(ctx, "docker.io")
		AddReportEntry("restart", fmt.Sprintf("%s after the pulls", time.Since(begin).Round(time.Second)))
		lastUse := lastUseOf(inspectCache(ctx, "docker.io"), tagOf(unused.tag))
		Expect(lastUse).To(BeTemporally("<=", begin), "a restart is no use")

		Eventually(func(ctx context.Context) []string { return inspectCache(ctx, "docker.io").complete() }).WithContext(ctx).
			WithTimeout(ttl + checkInterval + restartTime).ShouldNot(ContainElement(tagOf(unused.tag)))
		Expect(time.Since(lastUse)).To(BeNumerically(">=", ttl), "deleted before its time")
		AddReportEntry("deletion", fmt.Sprintf("%s after the last use", time.Since(lastUse).Round(time.Second)))
		Expect(inspectCache(ctx, "docker.io").complete()).To(ContainElement(tagOf(used.tag)))
		Expect(metric(ctx, "docker.io", "registry_cache_evictions_total", "reason", "expired")).To(BeNumerically(">", 0))

		By("looking at the volume")
		Eventually(func(ctx context.Context) string { return manifestsOnVolume(ctx, "docker.io") }).WithContext(ctx).
			ShouldNot(ContainSubstring(digestHex(unused)))
		Expect(manifestsOnVolume(ctx, "docker.io")).To(ContainSubstring(digestHex(used)))

		By("pulling both again")
		for _, image := range []sample{unused, used} {
			outcome, err := pull.Measured(ctx, tb.Upstream, workers()[1], image.digest)
			Expect(err).NotTo(HaveOccurred())
			Expect(outcome.FromNodes).To(BeZero(), "%+v", outcome)
			Expect(outcome.BlobRequests == 0).To(Equal(image == used), "%+v", outcome)
		}
	}, SpecTimeout(6*time.Minute))

	It("applies a changed TTL to stored images, and deletes nothing while it is disabled", func(ctx context.Context) {
		images := map[string]sample{}
		for _, host := range []string{"docker.io", "quay.io"} {
			images[host] = newSample(ctx, host, small)
			_, err := pull.Measured(ctx, tb.Upstream, node, images[host].tag)
			Expect(err).NotTo(HaveOccurred())
		}

		By("switching garbage collection off (v1alpha1, enabled: false), and with it lengthening the time to live of the other cache to 7 days")
		reapply(ctx, "v1alpha1", documentCaches, "docker.io", "quay.io")
		Expect(inspectCache(ctx, "docker.io").Policy.TTLSeconds).To(BeZero())
		Expect(inspectCache(ctx, "quay.io").Policy.TTLSeconds).To(BeEquivalentTo(7 * 24 * 60 * 60))
		Consistently(func(g Gomega, ctx context.Context) {
			for host, image := range images {
				g.Expect(inspectCache(ctx, host).complete()).To(ContainElement(tagOf(image.tag)), host)
			}
		}).WithContext(ctx).WithTimeout(ttl + checkInterval + 5*time.Second).WithPolling(5 * time.Second).Should(Succeed())

		By("switching it on, and shortening it to a minute again")
		reapply(ctx, "v1alpha3", minuteCaches, "docker.io", "quay.io")
		for host, image := range images {
			Eventually(func(ctx context.Context) []string { return inspectCache(ctx, host).complete() }).WithContext(ctx).
				WithTimeout(checkInterval + restartTime).ShouldNot(ContainElement(tagOf(image.tag)))
		}
	}, SpecTimeout(8*time.Minute))
})

const smallCache = `
- upstream: docker.io
  volume:
    size: 128Mi
`

// This project adds what the usage document excludes: "there is no functionality for garbage collection based on disk
// size".
var _ = Describe("A cache above its high watermark", Ordered, Label("gc", "long"), func() {
	BeforeAll(func(ctx context.Context) { startShoot(ctx, shootOf("v1alpha3", smallCache)) }, NodeTimeout(8*time.Minute))

	It("evicts the least recently used images first", func(ctx context.Context) {
		node := workers()[0]
		shape := images.Spec{LayerSizes: []int64{12 << 20}}
		evictions := func() float64 {
			return metric(ctx, "docker.io", "registry_cache_evictions_total", "reason", "least-recently-used")
		}
		pullNew := func() sample {
			image := newSample(ctx, "docker.io", shape)
			_, err := pull.Measured(ctx, tb.Upstream, node, image.tag)
			Expect(err).NotTo(HaveOccurred())
			Expect(pull.Remove(ctx, node, image.tag)).To(Succeed())
			return image
		}
		kept, lost := pullNew(), pullNew()
		var filled []sample
		for range 20 {
			// Used again and again: only the other one is unused for longest.
			outcome, err := pull.Measured(ctx, tb.Upstream, node, kept.digest)
			Expect(err).NotTo(HaveOccurred())
			Expect(outcome.Requests).To(BeZero(), "what is in use must stay: %+v", outcome)
			if evictions() > 0 {
				break
			}
			filled = append(filled, pullNew())
		}
		Eventually(evictions).WithContext(ctx).Should(BeNumerically(">", 0))
		report := inspectCache(ctx, "docker.io")
		AddReportEntry("volume", fmt.Sprintf("%d images of 12 MiB pulled, %d on the volume of 128 MiB, %.0f %% used", len(filled)+2, len(report.complete()), report.Volume.UsedPercent))
		Expect(report.complete()).To(ContainElement(tagOf(filled[len(filled)-1].tag)), "what was just pulled")
		outcome, err := pull.Measured(ctx, tb.Upstream, workers()[1], kept.digest)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.Requests).To(BeZero(), "%+v", outcome)
		outcome, err = pull.Measured(ctx, tb.Upstream, workers()[1], lost.digest)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.FromNodes).To(BeZero(), "%+v", outcome)
		Expect(outcome.BlobRequests).To(BeNumerically(">", 0), "used longest ago: %+v", outcome)
	}, SpecTimeout(6*time.Minute))
})

// reapply changes the configuration of caches and waits until the pods of the named ones have restarted with it.
func reapply(ctx context.Context, version, caches string, restarted ...string) {
	GinkgoHelper()
	before := map[string]string{}
	for _, host := range restarted {
		before[host] = string(cachePod(ctx, host).UID)
	}
	_, err := shoot.Apply(ctx, tb.Cluster, progress, shootOf(version, caches))
	Expect(err).NotTo(HaveOccurred())
	for _, host := range restarted {
		waitForReadyCache(ctx, host, before[host])
	}
}

// use asks the cache of docker.io for all of an image every five seconds, until the spec ends. While the cache restarts it
// cannot.
func use(ctx context.Context, node kindcluster.Node, result *shoot.Result, reference string) {
	GinkgoHelper()
	url := endpoint(result, "docker.io")
	ctx, cancel := context.WithCancel(ctx)
	transport, done := cacheTransport(ctx, node, result, schemeOf(result, "docker.io"))
	var using sync.WaitGroup
	using.Go(func() {
		tick := time.NewTicker(5 * time.Second)
		defer tick.Stop()
		for {
			if err := pullByCrane(ctx, transport, url, reference); err != nil {
				progress.Printf("Using %s: %v", reference, err)
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	DeferCleanup(func() {
		cancel()
		using.Wait()
		done()
	})
}

// lastUseOf returns when the image with the tag was used last.
func lastUseOf(report inspection, tag string) time.Time {
	GinkgoHelper()
	for _, image := range report.Images {
		if slices.Contains(image.Tags, tag) {
			return image.LastUse
		}
	}
	Fail("no image with the tag " + tag)
	return time.Time{}
}

// manifestsOnVolume lists the content of a cache's volume, seen from its node.
func manifestsOnVolume(ctx context.Context, upstreamHost string) string {
	GinkgoHelper()
	dir := volumeDir(ctx, upstreamHost)
	out, err := dir.node.Run(ctx, nil, "find", dir.path+"/docker/registry/v2/blobs", "-name", "data")
	Expect(err).NotTo(HaveOccurred())
	return string(out)
}

func digestHex(image sample) string { return image.digest[strings.LastIndexByte(image.digest, ':')+1:] }
