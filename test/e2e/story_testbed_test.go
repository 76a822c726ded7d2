package e2e

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

// What the other stories rely on: without this they would prove nothing.
var _ = Describe("The kind-based Shoot", Label("testbed"), func() {
	It("connects pods and nodes, and drops packets to service addresses that nobody owns inside of the node", func(ctx context.Context) {
		Expect(tb.Cluster.Verify(ctx, progress)).To(Succeed())
	}, SpecTimeout(3*time.Minute))
})
