// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/shoot"
	"github.com/registry-cache/extension/test/testbed/upstream/container"
)

// proxiedShoot is a Shoot with caches that have a proxy, which one of them is not to use.
func proxiedShoot(proxy string) []byte {
	return shootOf("v1alpha3", fmt.Sprintf(`
- upstream: quay.io
  volume:
    size: 1Gi
  proxy:
    httpProxy: %[1]s
    httpsProxy: %[1]s
- upstream: ghcr.io
  volume:
    size: 1Gi
  proxy:
    httpProxy: %[1]s
    httpsProxy: %[1]s
    noProxy: ghcr.io
`, proxy))
}

var _ = Describe("A cache with a proxy", Ordered, Label("proxy"), func() {
	var proxy string

	BeforeAll(func(ctx context.Context) {
		proxy = "http://" + net.JoinHostPort(upstreamAddress(ctx), container.ProxyPort)
		startShoot(ctx, proxiedShoot(proxy))
	}, NodeTimeout(8*time.Minute))

	It("contacts its upstream through the proxy unless noProxy contains the upstream", func(ctx context.Context) {
		for host, proxied := range map[string]bool{"quay.io": true, "ghcr.io": false} {
			image, mark := newSample(ctx, host, small), markUpstream(ctx)
			outcome, err := pull.Measured(ctx, tb.Upstream, workers()[0], image.tag)
			Expect(err).NotTo(HaveOccurred())
			Expect(outcome.FromNodes).To(BeZero(), "%+v", outcome)
			Expect(outcome.BlobRequests).To(Equal(len(small.LayerSizes)+1), "%+v", outcome)
			expectProxied(ctx, mark, proxied)
		}
	}, SpecTimeout(10*time.Minute)) // the time of BeforeAll counts

	It("contacts its upstream directly after the proxy is removed", func(ctx context.Context) {
		applyShoot(ctx, shootOf("v1alpha3", "- upstream: quay.io\n  volume:\n    size: 1Gi"))
		DeferCleanup(func(ctx context.Context) { applyShoot(ctx, proxiedShoot(proxy)) }, NodeTimeout(5*time.Minute))
		// The pod with the proxy may still serve.
		Eventually(func(g Gomega) {
			g.Expect(cachePod(ctx, "quay.io").Spec.Containers[0].Env).NotTo(ContainElement(HaveField("Value", proxy)))
		}).WithContext(ctx).Should(Succeed())
		waitForReadyCache(ctx, "quay.io", "")
		for _, node := range nodes {
			Expect(pull.WaitForMirror(ctx, node, "quay.io")).To(Succeed())
		}
		image, mark := newSample(ctx, "quay.io", small), markUpstream(ctx)
		outcome, err := pull.Measured(ctx, tb.Upstream, workers()[0], image.tag)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.FromNodes).To(BeZero(), "%+v", outcome)
		expectProxied(ctx, mark, false)
	}, SpecTimeout(5*time.Minute))

	It("is rejected with the field path if the proxy URL is invalid", func(ctx context.Context) {
		_, err := shoot.Apply(ctx, tb.Cluster, progress, proxiedShoot("socks5://proxy.example.com"))
		Expect(err).To(MatchError(ContainSubstring("caches[0].proxy.httpProxy")))
	}, SpecTimeout(2*time.Minute))
})

// expectProxied expects all requests since the mark, and at least one, to have come through the proxy, or none of them.
func expectProxied(ctx context.Context, mark int64, proxied bool) {
	GinkgoHelper()
	requests, err := tb.Upstream.Requests(ctx, mark)
	Expect(err).NotTo(HaveOccurred())
	Expect(requests).NotTo(BeEmpty())
	for _, request := range requests {
		host, _, err := net.SplitHostPort(request.RemoteAddr)
		Expect(err).NotTo(HaveOccurred())
		Expect(net.ParseIP(host).IsLoopback()).To(Equal(proxied), "%+v", request)
	}
}
