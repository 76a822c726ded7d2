// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/upstream/container"
)

// unitName is the unit that probes the caches on every node.
const unitName = "configure-containerd-registries.service"

// addWorker lets a node join until the spec ends. It resolves and trusts the upstream, and has nothing else that the
// testbed puts on nodes.
func addWorker(ctx context.Context) kindcluster.Node {
	GinkgoHelper()
	node, err := tb.Cluster.AddWorker(ctx, progress)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func(ctx context.Context) {
		Expect(tb.Cluster.RemoveWorker(ctx, progress, node)).To(Succeed())
	}, NodeTimeout(3*time.Minute))
	_, err = container.Ensure(ctx, tb.Cluster, progress)
	Expect(err).NotTo(HaveOccurred())
	return node
}

// Usage document: "The containerd registry configuration on that Node is applied after the registry cache Service is
// reachable from the Node".
var _ = Describe("A node that joins a Shoot with caches", Ordered, Label("join"), func() {
	var warm sample

	BeforeAll(func(ctx context.Context) {
		startShoot(ctx, shootOf("v1alpha3", "- upstream: docker.io\n  volume:\n    size: 1Gi"))
		warm = newSample(ctx, "docker.io", small)
		_, err := pull.Measured(ctx, tb.Upstream, workers()[0], warm.tag)
		Expect(err).NotTo(HaveOccurred())
	}, NodeTimeout(8*time.Minute))

	It("falls back to the upstream until the cache is usable, then uses the cache, and no pull fails", func(ctx context.Context) {
		node := addWorker(ctx)
		pullBoth := func() *pulls {
			return startPulls(ctx, maxPulls, func(ctx context.Context, n int) (string, error) {
				if n%2 == 1 {
					return warm.tag, nil
				}
				return newOf("docker.io")(ctx, n)
			}, node)
		}
		going := pullBoth()
		going.waitForMore(ctx, 1)
		expectNoneFailed("pulls before the node has its agent", going.end())

		By("giving it the node agent, while it does not reach the cache")
		cutOff(ctx, node, cachePod(ctx, "docker.io").Status.PodIP, dropped)
		// The first thing that Gardener's agent does is to restart containerd with another configuration; in a landscape
		// the kubelet, and with it pulls, start later.
		Expect(tb.Equip(ctx, progress)).To(Succeed())
		Eventually(func() error {
			_, err := node.Run(ctx, nil, "systemctl", "is-active", unitName)
			return err
		}).WithContext(ctx).Should(Succeed())
		going = pullBoth()
		going.waitForMore(ctx, 3)
		hosts, err := pull.Hosts(ctx, node, "docker.io")
		Expect(err).NotTo(HaveOccurred())
		Expect(pull.UsesMirror(hosts)).To(BeFalse(), "a cache that does not answer must not be configured: %s", hosts)

		By("letting it reach the cache")
		restore(ctx, node)
		Expect(pull.WaitForMirror(ctx, node, "docker.io")).To(Succeed())
		going.waitForMore(ctx, 2)
		expectNoneFailed("pulls before and after the cache is used", going.end())

		outcome, err := pull.Measured(ctx, tb.Upstream, node, warm.tag)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.BlobBytes).To(BeZero(), "%+v", outcome)
		Expect(outcome.FromNodes).To(BeZero(), "%+v", outcome)
		outcome, err = pull.Measured(ctx, tb.Upstream, node, newSample(ctx, "docker.io", small).tag)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.FromNodes).To(BeZero(), "%+v", outcome)
		// The time of BeforeAll counts.
	}, SpecTimeout(12*time.Minute))
})
