// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"
	"time"

	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	registryv1alpha3 "github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/pull"
)

// containerdWaits is how long containerd waits for an address that does not answer, for each request.
const containerdWaits = 30 * time.Second

// Usage document: "If the Service of a registry cache is deleted [...] containerd registry config will still contain
// the old Service's cluster IP", and "requests against the registry cache time out in 30 seconds". The unit and
// dial_timeout prevent the delay; without both it still occurs.
var _ = Describe("The stale address of a deleted Service", Ordered, Label("stale", "long"), func() {
	const upstreamHost = "docker.io"
	var (
		node   kindcluster.Node
		server string
	)

	BeforeAll(func(ctx context.Context) {
		result := startShoot(ctx, shootOf("v1alpha3", "- upstream: docker.io\n  volume:\n    size: 1Gi"))
		node = workers()[0]
		server = endpoint(result, upstreamHost)
		By("stopping what brings the Service back with its address")
		DeferCleanup(func(ctx context.Context) {
			scaleResourceManager(ctx, 1)
			// Its webhooks are reached a moment after its pod is ready.
			extension := &extensionsv1alpha1.Extension{ObjectMeta: metav1.ObjectMeta{Namespace: result.Namespace, Name: "registry-cache"}}
			Eventually(func() error {
				return kube.Patch(ctx, extension, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"annotations":{"e2e":"none"}}}`)), client.DryRunAll)
			}).WithContext(ctx).Should(Succeed())
		}, NodeTimeout(4*time.Minute))
		scaleResourceManager(ctx, 0)
		Expect(kube.Delete(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: registryv1alpha3.ObjectName(upstreamHost)}})).To(Succeed())
	}, NodeTimeout(8*time.Minute))

	It("does not delay pulls while the unit runs", func(ctx context.Context) {
		Expect(pull.WaitForNoMirror(ctx, node, upstreamHost)).To(Succeed())
		took, err := pull.Image(ctx, node, newSample(ctx, upstreamHost, small).tag)
		Expect(err).NotTo(HaveOccurred())
		AddReportEntry("with the unit", took.Round(time.Millisecond).String())
		Expect(took).To(BeNumerically("<", noise))
		// The time of BeforeAll counts.
	}, SpecTimeout(10*time.Minute))

	DescribeTable("delays pulls without the unit by", func(ctx context.Context, option string, least, most time.Duration) {
		withHosts(ctx, node, upstreamHost, "server = \"https://registry-1.docker.io\"\n\n[host.\""+server+"\"]\n  capabilities = [\"pull\", \"resolve\"]\n"+option)
		mark := markUpstream(ctx)
		took, err := pull.Image(ctx, node, newSample(ctx, upstreamHost, small).tag)
		Expect(err).NotTo(HaveOccurred(), "it waits, and does not fail")
		AddReportEntry("without the unit", fmt.Sprintf("%q: %s", strings.TrimSpace(option), took.Round(time.Millisecond)))
		Expect(took).To(And(BeNumerically(">=", least), BeNumerically("<=", most)))
		Expect(requestsOfNodes(ctx, mark)).NotTo(BeEmpty())
	},
		// At most four timeouts: tag and manifest one after the other, then config and layers concurrently.
		Entry("30 seconds per request, as the usage document states", "", containerdWaits, 4*containerdWaits+noise, SpecTimeout(4*time.Minute)),
		Entry("0.2 seconds per request with the dial_timeout of this extension", "  dial_timeout = \"200ms\"\n", 200*time.Millisecond, 4*200*time.Millisecond+noise, SpecTimeout(2*time.Minute)),
	)
})

// withHosts stops the unit on the node and gives containerd a hosts.toml of an upstream, until the spec ends.
func withHosts(ctx context.Context, node kindcluster.Node, upstreamHost, content string) {
	GinkgoHelper()
	file := pull.HostsDir + "/" + upstreamHost + "/hosts.toml"
	DeferCleanup(func(ctx context.Context) {
		// The unit touches no file that it has not written.
		_, err := node.Run(ctx, nil, "rm", "-f", file)
		Expect(err).NotTo(HaveOccurred())
		_, err = node.Run(ctx, nil, "systemctl", "start", unitName)
		Expect(err).NotTo(HaveOccurred())
	}, NodeTimeout(time.Minute))
	_, err := node.Run(ctx, nil, "systemctl", "stop", unitName)
	Expect(err).NotTo(HaveOccurred())
	Expect(node.WriteFile(ctx, file, 0o644, []byte(content))).To(Succeed())
}

// scaleResourceManager stops Gardener's resource manager, which brings back what somebody deletes, or starts it again.
func scaleResourceManager(ctx context.Context, replicas int32) {
	GinkgoHelper()
	deployment := &appsv1.Deployment{}
	key := types.NamespacedName{Namespace: "garden", Name: "gardener-resource-manager"}
	Expect(kube.Get(ctx, key, deployment)).To(Succeed())
	patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas))
	Expect(kube.Patch(ctx, deployment, patch)).To(Succeed())
	Eventually(func(g Gomega) {
		pods := &corev1.PodList{}
		g.Expect(kube.List(ctx, pods, client.InNamespace(key.Namespace), client.MatchingLabels(deployment.Spec.Selector.MatchLabels))).To(Succeed())
		g.Expect(pods.Items).To(HaveLen(int(replicas)))
		g.Expect(kube.Get(ctx, key, deployment)).To(Succeed())
		g.Expect(deployment.Status.ReadyReplicas).To(Equal(replicas))
	}).WithContext(ctx).Should(Succeed())
}
