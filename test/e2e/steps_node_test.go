// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// kubectl runs the kubectl of the control-plane node with the rights of a Shoot owner and returns what it prints.
func kubectl(ctx context.Context, args ...string) string {
	GinkgoHelper()
	out, err := nodes[0].Run(ctx, nil, append([]string{"env", "KUBECONFIG=/etc/kubernetes/admin.conf", "kubectl"}, args...)...)
	Expect(err).NotTo(HaveOccurred())
	return string(out)
}

// drain moves all pods off the node, but those of DaemonSets, and keeps new ones away until the spec ends, or uncordon.
func drain(ctx context.Context, node kindcluster.Node) {
	GinkgoHelper()
	DeferCleanup(func(ctx context.Context) { uncordon(ctx, node) }, NodeTimeout(time.Minute))
	kubectl(ctx, "drain", node.Name, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
}

// uncordon lets pods come back to the node.
func uncordon(ctx context.Context, node kindcluster.Node) {
	GinkgoHelper()
	kubectl(ctx, "uncordon", node.Name)
}

// unitLog returns what the unit on the node has reported since a moment.
func unitLog(ctx context.Context, node kindcluster.Node, since time.Time) string {
	GinkgoHelper()
	out, err := node.Run(ctx, nil, "journalctl", "--quiet", "--no-pager", "--output=cat",
		"--unit=configure-containerd-registries", fmt.Sprintf("--since=@%d.%06d", since.Unix(), since.Nanosecond()/1000))
	Expect(err).NotTo(HaveOccurred())
	return string(out)
}

// undo ends what a run that was killed may have left on the upstream and the nodes.
func undo(ctx context.Context) {
	GinkgoHelper()
	Expect(tb.Upstream.Break(ctx)).To(Succeed())
	Expect(tb.Upstream.Protect(ctx)).To(Succeed())
	Expect(tb.Upstream.Shape(ctx, upstream.Shaping{})).To(Succeed())
	for _, node := range nodes {
		restore(ctx, node)
		uncordon(ctx, node)
	}
}
