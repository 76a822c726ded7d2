// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	registryv1alpha3 "github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/shoot"
)

// The main story of the usage document: enable the caches, pull and check the origin of the bytes, stop and restart a
// cache, apply an invalid configuration, disable the extension.
var _ = Describe("The example Shoot", Ordered, Label("enable"), func() {
	var (
		manifest []byte
		result   *shoot.Result
	)

	BeforeAll(func(ctx context.Context) {
		manifest = exampleShoot()
		// An earlier run may have left its Shoot, with content in the caches.
		Expect(shoot.Delete(ctx, tb.Cluster, progress, manifest)).To(Succeed())
		var err error
		result, err = shoot.Apply(ctx, tb.Cluster, progress, manifest)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(func(ctx context.Context) {
			Expect(shoot.Delete(ctx, tb.Cluster, progress, manifest)).To(Succeed())
		}, NodeTimeout(5*time.Minute))
		for _, upstream := range []string{"docker.io", "ghcr.io", "quay.io"} {
			for _, node := range nodes {
				Expect(pull.WaitForMirror(ctx, node, upstream)).To(Succeed())
			}
		}
	}, NodeTimeout(8*time.Minute))

	It("has one ready cache per upstream, with its endpoint in the status", func(ctx context.Context) {
		Expect(result.Status).NotTo(BeNil())
		var upstreams []string
		for _, cache := range result.Status.Caches {
			upstreams = append(upstreams, cache.Upstream)
			service := &corev1.Service{}
			Expect(kube.Get(ctx, inKubeSystem(registryv1alpha3.ObjectName(cache.Upstream)), service)).To(Succeed())
			Expect(service.Labels).To(HaveKeyWithValue("upstream-host", cache.Upstream))
			Expect(cache.Endpoint).To(Equal("https://" + service.Spec.ClusterIP + ":5000"))
			Eventually(func(g Gomega) {
				statefulSet := &appsv1.StatefulSet{}
				g.Expect(kube.Get(ctx, inKubeSystem(registryv1alpha3.ObjectName(cache.Upstream)), statefulSet)).To(Succeed())
				g.Expect(statefulSet.Status.ReadyReplicas).To(Equal(int32(1)))
			}).WithContext(ctx).Should(Succeed())
		}
		Expect(upstreams).To(Equal([]string{"docker.io", "ghcr.io", "quay.io"}))
	}, SpecTimeout(3*time.Minute))

	It("has volumes with the label and the size of the usage document", func(ctx context.Context) {
		for upstream, size := range map[string]string{"docker.io": "100Gi", "ghcr.io": "10Gi", "quay.io": "10Gi"} {
			claims := &corev1.PersistentVolumeClaimList{}
			Expect(kube.List(ctx, claims, client.InNamespace("kube-system"), client.MatchingLabels{"upstream-host": upstream})).To(Succeed())
			Expect(claims.Items).To(HaveLen(1))
			claim := claims.Items[0]
			Expect(claim.Status.Phase).To(Equal(corev1.ClaimBound))
			Expect(claim.Spec.Resources.Requests.Storage().String()).To(Equal(size))
			Expect(*claim.Spec.StorageClassName).To(Equal("default"))
		}
	}, SpecTimeout(time.Minute))

	It("fetches each blob once for crane and for containerd on two nodes", func(ctx context.Context) {
		mark := markUpstream(ctx)

		By("crane, through the cache's endpoint")
		layers := craneLayers(ctx, nodes[0], result, images.Alpine)
		transfers := blobTransfers(ctx, mark)
		Expect(transfers).NotTo(BeEmpty(), "the first pull must come from the upstream")
		for _, layer := range layers {
			Expect(transfers).To(HaveKeyWithValue(layer, 1))
		}

		By("containerd, on two nodes")
		for _, node := range workers()[:2] {
			outcome, err := pull.Measured(ctx, tb.Upstream, node, images.Alpine)
			Expect(err).NotTo(HaveOccurred())
			Expect(outcome.FromNodes).To(BeZero(), "no node may ask the upstream: %+v", outcome)
			if node.Name == workers()[1].Name {
				Expect(outcome.BlobRequests).To(BeZero(), "%+v", outcome)
			}
		}
		for digest, count := range blobTransfers(ctx, mark) {
			Expect(count).To(Equal(1), "transfers of %s", digest)
		}

		By("looking at the volume")
		dir := volumeDir(ctx, "docker.io")
		for _, layer := range layers {
			hex := strings.TrimPrefix(layer, "sha256:")
			blob := fmt.Sprintf("%s/docker/registry/v2/blobs/sha256/%s/%s/data", dir.path, hex[:2], hex)
			sum, err := dir.node.Run(ctx, nil, "sha256sum", blob)
			Expect(err).NotTo(HaveOccurred())
			Expect(string(sum)).To(HavePrefix(hex))
			link, err := dir.node.Run(ctx, nil, "cat", fmt.Sprintf("%s/docker/registry/v2/repositories/library/alpine/_layers/sha256/%s/link", dir.path, hex))
			Expect(err).NotTo(HaveOccurred())
			Expect(string(link)).To(Equal(layer))
		}
	}, SpecTimeout(3*time.Minute))

	It("runs a Pod with an image that the kubelet pulls through the cache", func(ctx context.Context) {
		mark := markUpstream(ctx)
		for _, node := range workers()[:2] {
			Expect(pull.Remove(ctx, node, images.SampleQuay)).To(Succeed())
			runToReady(ctx, "sample-"+node.Name, node.Name, images.SampleQuay)
		}
		for digest, count := range blobTransfers(ctx, mark) {
			Expect(count).To(Equal(1), "transfers of %s", digest)
		}
		Expect(requestsOfNodes(ctx, mark)).To(BeEmpty())
	}, SpecTimeout(3*time.Minute))

	It("falls back to the upstream while a cache is unavailable, and uses the cache again afterwards", func(ctx context.Context) {
		node := workers()[0]
		By("measuring the direct way: an image of a registry without a cache")
		direct, err := pull.Measured(ctx, tb.Upstream, node, newImage(ctx, "gcr.io"))
		Expect(err).NotTo(HaveOccurred())
		Expect(direct.FromCache).To(BeZero())

		By("taking the cache away")
		scale(ctx, "docker.io", 0)
		DeferCleanup(func(ctx context.Context) { scale(ctx, "docker.io", 1) }, NodeTimeout(time.Minute))
		Expect(pull.WaitForNoMirror(ctx, node, "docker.io")).To(Succeed())
		without, err := pull.Measured(ctx, tb.Upstream, node, newImage(ctx, "docker.io"))
		Expect(err).NotTo(HaveOccurred())
		Expect(without.FromCache).To(BeZero())
		Expect(without.BlobRequests).To(Equal(direct.BlobRequests))
		Expect(without.Duration).To(BeNumerically("<", direct.Duration+2*time.Second+noise), "direct: %s", direct.Duration)

		By("bringing it back")
		scale(ctx, "docker.io", 1)
		waitForCaches(ctx, result)
		again, err := pull.Measured(ctx, tb.Upstream, node, newImage(ctx, "docker.io"))
		Expect(err).NotTo(HaveOccurred())
		Expect(again.FromNodes).To(BeZero(), "%+v", again)
	}, SpecTimeout(4*time.Minute))

	DescribeTable("keeps its caches and reports the field path after an edit with",
		func(ctx context.Context, edit func(string) string, want string) {
			bad := edit(string(manifest))
			Expect(bad).NotTo(Equal(string(manifest)), "the edit must change the manifest")
			_, err := shoot.Apply(ctx, tb.Cluster, progress, []byte(bad))
			Expect(err).To(MatchError(ContainSubstring(want)))
			// What admission refuses never gets to the controller.
			if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
				Expect(extensionError(ctx, result.Namespace)).To(ContainSubstring(want))
			}

			outcome, err := pull.Measured(ctx, tb.Upstream, workers()[1], images.TinyDocker)
			Expect(err).NotTo(HaveOccurred())
			Expect(outcome.FromNodes).To(BeZero(), "the cache must go on serving: %+v", outcome)

			By("putting it right")
			result, err = shoot.Apply(ctx, tb.Cluster, progress, manifest)
			Expect(err).NotTo(HaveOccurred())
			Expect(extensionError(ctx, result.Namespace)).To(BeEmpty())
		},
		Entry("an unknown field", replace("    - upstream: ghcr.io", "    - upstream: ghcr.io\n        sice: 1Gi"), "providerConfig.caches[1].sice", SpecTimeout(3*time.Minute)),
		Entry("a scheme in the upstream", replace("upstream: ghcr.io", "upstream: https://ghcr.io"), "providerConfig.caches[1].upstream", SpecTimeout(3*time.Minute)),
		Entry("a size of zero", replace("size: 100Gi", "size: 0"), "providerConfig.caches[0].size", SpecTimeout(3*time.Minute)),
		Entry("no caches", noCaches, "providerConfig.caches", SpecTimeout(3*time.Minute)),
	)

	It("leaves no files on nodes and no objects in the cluster after the extension is removed", func(ctx context.Context) {
		dir := volumeDir(ctx, "docker.io")
		Expect(shoot.Delete(ctx, tb.Cluster, progress, manifest)).To(Succeed())
		for _, node := range nodes {
			out, err := node.Run(ctx, nil, "find", pull.HostsDir, "/var/lib", "/opt/bin", "/etc/systemd/system",
				"-maxdepth", "1", "(", "-name", "docker.io", "-o", "-name", "ghcr.io", "-o", "-name", "quay.io",
				"-o", "-name", "registry-cache", "-o", "-name", "configure-containerd-registries*", ")")
			Expect(err).NotTo(HaveOccurred())
			Expect(string(out)).To(BeEmpty(), "left on %s", node.Name)
		}
		for _, list := range []client.ObjectList{&corev1.ServiceList{}, &appsv1.StatefulSetList{}, &corev1.PersistentVolumeClaimList{}, &corev1.SecretList{}, &corev1.PodList{}} {
			Eventually(func(g Gomega) {
				g.Expect(kube.List(ctx, list, client.InNamespace("kube-system"), client.HasLabels{"upstream-host"})).To(Succeed())
				g.Expect(itemNames(list)).To(BeEmpty())
			}).WithContext(ctx).Should(Succeed())
		}
		Eventually(func(g Gomega) {
			_, err := dir.node.Run(ctx, nil, "test", "!", "-e", dir.path)
			g.Expect(err).NotTo(HaveOccurred())
		}).WithContext(ctx).Should(Succeed())
	}, SpecTimeout(5*time.Minute))
})

// replace returns an edit that replaces one line's text.
func replace(old, new string) func(string) string {
	return func(manifest string) string { return strings.Replace(manifest, old, new, 1) }
}

// noCaches cuts the list of caches off and leaves an empty one.
func noCaches(manifest string) string {
	before, _, _ := strings.Cut(manifest, "\n      caches:")
	return before + "\n      caches: []\n"
}
