// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/registry-cache/extension/test/testbed/pull"
)

// Properties of the testbed on which the other stories depend: without them, those stories would prove nothing.
var _ = Describe("The kind-based Shoot", Label("testbed"), func() {
	It("connects pods and nodes, and drops packets to unassigned service addresses inside the node", func(ctx context.Context) {
		Expect(tb.Cluster.Verify(ctx, progress)).To(Succeed())
	}, SpecTimeout(3*time.Minute))

	It("pulls an image completely again after its removal from a node", func(ctx context.Context) {
		image := newSample(ctx, "gcr.io", small).tag
		first, err := pull.Measured(ctx, tb.Upstream, workers()[0], image)
		Expect(err).NotTo(HaveOccurred())
		Expect(first.BlobRequests).To(Equal(len(small.LayerSizes)+1), "%+v", first)
		second, err := pull.Measured(ctx, tb.Upstream, workers()[0], image)
		Expect(err).NotTo(HaveOccurred())
		Expect(second.BlobRequests).To(Equal(first.BlobRequests), "%+v", second)
		Expect(pull.Remove(ctx, workers()[0], image)).To(Succeed())
	}, SpecTimeout(time.Minute))
})
