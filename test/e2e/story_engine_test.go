// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	registryv1alpha3 "github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/product"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/shoot"
	"github.com/registry-cache/extension/test/testbed/upstream/container"
)

// An operator starts with the stock registry, changes to the cache server, and changes back. Content on the volumes is
// not fetched again.
var _ = Describe("A cache with a selectable engine", Ordered, Label("engine", "long"), func() {
	const upstreamHost = "docker.io"
	var (
		manifest []byte
		result   *shoot.Result
		claim    corev1.PersistentVolumeClaim
		layers   []string
	)

	BeforeAll(func(ctx context.Context) {
		manifest = exampleShoot()
		Expect(shoot.Delete(ctx, tb.Cluster, progress, manifest)).To(Succeed())
		// The next story expects the product as it is by default.
		DeferCleanup(func(ctx context.Context) { installEngine(ctx, "") }, NodeTimeout(5*time.Minute))
		DeferCleanup(func(ctx context.Context) {
			Expect(shoot.Delete(ctx, tb.Cluster, progress, manifest)).To(Succeed())
		}, NodeTimeout(5*time.Minute))
		result = applyWithEngine(ctx, manifest, product.Distribution)
		claim = claimOf(ctx, upstreamHost)
	}, NodeTimeout(15*time.Minute))

	It("serves pulls with the stock registry", func(ctx context.Context) {
		mark := markUpstream(ctx)
		layers = craneLayers(ctx, nodes[0], result, images.Alpine)
		Expect(layers).NotTo(BeEmpty())
		for _, layer := range layers {
			Expect(blobTransfers(ctx, mark)).To(HaveKeyWithValue(layer, 1), "the first pull must come from the upstream")
		}
		for _, node := range workers()[:1] {
			Expect(pull.WaitForMirror(ctx, node, upstreamHost)).To(Succeed())
			mark := markUpstream(ctx)
			_, err := pull.Measured(ctx, tb.Upstream, node, images.Alpine)
			Expect(err).NotTo(HaveOccurred())
			// It also fetches the configurations of other platforms, which crane did not.
			for _, layer := range layers {
				Expect(blobTransfers(ctx, mark)).NotTo(HaveKey(layer))
			}
			// The stock registry asks about a tag each time, and does not say who it is as our server does.
			requests, err := tb.Upstream.Requests(ctx, mark)
			Expect(err).NotTo(HaveOccurred())
			for _, request := range requests {
				Expect(request.UserAgent).NotTo(HavePrefix("containerd/"), "no node may ask the upstream: %+v", request)
			}
		}
		// The time of BeforeAll, which builds the stock registry, counts.
	}, SpecTimeout(18*time.Minute))

	DescribeTable("serves the content of the previous engine after an engine change", func(ctx context.Context, engine string) {
		before := endpoint(result, upstreamHost)
		result = applyWithEngine(ctx, manifest, engine)
		Expect(endpoint(result, upstreamHost)).To(Equal(before), "nodes must have nothing to learn")
		Expect(claimOf(ctx, upstreamHost).UID).To(Equal(claim.UID), "the volume must be the same")

		mark := markUpstream(ctx)
		Expect(craneLayers(ctx, nodes[0], result, images.Alpine)).To(Equal(layers))
		Expect(blobTransfers(ctx, mark)).To(BeEmpty())
	},
		Entry("from the stock registry to the cache server", "registry-cache", SpecTimeout(8*time.Minute)),
		Entry("from the cache server to the stock registry", product.Distribution, SpecTimeout(8*time.Minute)),
	)
})

// installEngine installs the product with an engine, as an operator does who changes the values of the chart.
func installEngine(ctx context.Context, engine string) {
	GinkgoHelper()
	roots, err := container.CACertificate()
	Expect(err).NotTo(HaveOccurred())
	Expect(product.Install(ctx, tb.Cluster, progress, product.Options{CABundle: roots, Engine: engine})).To(Succeed())
}

// applyWithEngine changes the engine, reconciles the Shoot and returns when a pod of that engine is ready in the cache of
// docker.io.
func applyWithEngine(ctx context.Context, manifest []byte, engine string) *shoot.Result {
	GinkgoHelper()
	installEngine(ctx, engine)
	result, err := shoot.Apply(ctx, tb.Cluster, progress, manifest)
	Expect(err).NotTo(HaveOccurred())
	name := registryv1alpha3.ObjectName("docker.io")
	Eventually(func(g Gomega) {
		set := &appsv1.StatefulSet{}
		g.Expect(kube.Get(ctx, inKubeSystem(name), set)).To(Succeed())
		g.Expect(set.Spec.Template.Spec.Containers[0].Image).To(ContainSubstring("/" + engine + ":"))
		g.Expect(set.Status.ObservedGeneration).To(Equal(set.Generation))
		g.Expect(set.Status.CurrentRevision).To(Equal(set.Status.UpdateRevision))
		g.Expect(set.Status.ReadyReplicas).To(Equal(int32(1)))
		pod := &corev1.Pod{}
		g.Expect(kube.Get(ctx, inKubeSystem(name+"-0"), pod)).To(Succeed())
		g.Expect(pod.Spec.Containers[0].Image).To(Equal(set.Spec.Template.Spec.Containers[0].Image))
		g.Expect(pod.DeletionTimestamp).To(BeNil())
	}).WithContext(ctx).Should(Succeed())
	// kube-proxy learns of a ready pod a moment later.
	Eventually(func() error { return probe(ctx, nodes[0], result, schemeOf(result, "docker.io"), "docker.io") }).WithContext(ctx).Should(Succeed())
	return result
}
