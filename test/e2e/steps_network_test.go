// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/registry-cache/extension/test/testbed/kindcluster"
)

// What becomes of packets to an address that is cut off.
const (
	// dropped: nothing comes back, as from a network that has lost the address.
	dropped = "drop"
	// rejected: the connection is refused at once, as by a machine on which nothing listens.
	rejected = "reject with icmp type port-unreachable"
)

// cutTable is a table of its own, so that its end takes nothing else away. The hooks come after the DNAT of kube-proxy:
// the address of a pod is that of its Service, too.
const cutTable = `
table inet e2e
delete table inet e2e
`

const cutRules = `
table inet e2e {
	chain output {
		type filter hook output priority filter; policy accept;
		ip daddr %[1]s %[2]s
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		ip daddr %[1]s %[2]s
	}
}
`

// cutOff lets the address be unreachable from the node and its pods until the spec ends, or restore. It acts in the
// network namespace of the node alone. Of two calls for one node the second counts.
func cutOff(ctx context.Context, node kindcluster.Node, address, verdict string) {
	GinkgoHelper()
	DeferCleanup(func(ctx context.Context) { restore(ctx, node) }, NodeTimeout(time.Minute))
	_, err := node.Run(ctx, strings.NewReader(cutTable+fmt.Sprintf(cutRules, address, verdict)), "nft", "-f", "-")
	Expect(err).NotTo(HaveOccurred())
}

// restore ends cutOff on the node.
func restore(ctx context.Context, node kindcluster.Node) {
	GinkgoHelper()
	_, err := node.Run(ctx, strings.NewReader(cutTable), "nft", "-f", "-")
	Expect(err).NotTo(HaveOccurred())
}
