// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	registryv1alpha3 "github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/test/testbed/containerdpull"
	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// simulatedNodes pull beside the real ones, with the code of containerd and the hosts.toml of a real node.
const simulatedNodes = 30

// herdProgram is where the pull code of containerd is on a node.
const herdProgram = "/usr/local/bin/e2e-containerd-pull"

// A worker pool is scaled up: all new nodes pull the same image concurrently. The clients use all processors of the machine. On
// a slow one, its nodes, DNS and the API server answer too late, and clients continue with the upstream. Therefore CI omits
// these stories. BenchmarkHerd measures the part of the server.
var _ = Describe("Concurrent pulls of one image", Ordered, Label("herd", "long"), func() {
	BeforeAll(func(ctx context.Context) {
		built, err := containerdpull.Build(ctx, "containerd-v2", GinkgoT().TempDir())
		Expect(err).NotTo(HaveOccurred())
		program, err := os.ReadFile(string(built))
		Expect(err).NotTo(HaveOccurred())
		Expect(nodes[0].WriteFile(ctx, herdProgram, 0o755, program)).To(Succeed())
		DeferCleanup(func(ctx context.Context) {
			_, err := nodes[0].Run(ctx, nil, "rm", "-f", herdProgram)
			Expect(err).NotTo(HaveOccurred())
		}, NodeTimeout(time.Minute))
	}, NodeTimeout(4*time.Minute))

	pullConcurrently := func(ctx context.Context, layerSizes ...int64) {
		GinkgoHelper()
		startShoot(ctx, shootOf("v1alpha3", "- upstream: docker.io\n  volume:\n    size: 2Gi"))
		image := newSample(ctx, "docker.io", images.Spec{LayerSizes: layerSizes})
		mark := markUpstream(ctx)
		herd := startHerd(ctx, image, nodes...)
		herd.expectAll(ctx, image)
		Expect(requestsOfNodes(ctx, mark)).To(BeEmpty())
		expectSentOnce(ctx, mark, herd.report.Clients[0].Bytes)
	}

	It("by 33 nodes cause one transfer from a slow upstream", func(ctx context.Context) {
		DeferCleanup(func(ctx context.Context) {
			Expect(tb.Upstream.Shape(ctx, upstream.Shaping{})).To(Succeed())
		}, NodeTimeout(time.Minute))
		Expect(tb.Upstream.Shape(ctx, upstream.Shaping{BytesPerSecond: 4 << 20})).To(Succeed())
		pullConcurrently(ctx, 40<<20, 30<<20, 20<<20, 10<<20)
		// The time of BeforeAll counts, which may have to build the program.
	}, SpecTimeout(10*time.Minute))

	It("by 33 nodes cause one transfer of its 500 MiB from the upstream", func(ctx context.Context) {
		pullConcurrently(ctx, 200<<20, 150<<20, 100<<20, 50<<20)
	}, SpecTimeout(10*time.Minute))

	It("succeed on all nodes while one of the two cache pods is killed", func(ctx context.Context) {
		startShoot(ctx, shootOf("v1alpha3", "- upstream: docker.io\n  volume:\n    size: 2Gi\n  highAvailability:\n    enabled: true"))
		name := registryv1alpha3.ObjectName("docker.io")
		for _, pod := range []string{name + "-0", name + "-1"} {
			Eventually(func(g Gomega) { g.Expect(readyPod(ctx, g, pod)).To(BeTrue(), pod) }).WithContext(ctx).Should(Succeed())
		}
		image := newSample(ctx, "docker.io", images.Spec{LayerSizes: []int64{80 << 20, 20 << 20}})
		DeferCleanup(func(ctx context.Context) {
			Expect(tb.Upstream.Shape(ctx, upstream.Shaping{})).To(Succeed())
		}, NodeTimeout(time.Minute))
		Expect(tb.Upstream.Shape(ctx, upstream.Shaping{BytesPerSecond: 10 << 20})).To(Succeed())
		mark := markUpstream(ctx)
		herd := startHerd(ctx, image, workers()...)
		Eventually(func() int64 { return sentBlobs(ctx, mark) }).WithContext(ctx).Should(BeNumerically(">", 20<<20))
		pod := &corev1.Pod{}
		Expect(kube.Get(ctx, inKubeSystem(name+"-1"), pod)).To(Succeed())
		Expect(kube.Delete(ctx, pod, client.GracePeriodSeconds(0))).To(Succeed())
		herd.expectAll(ctx, image)
		sent := sentBlobs(ctx, mark)
		AddReportEntry("bytes from the upstream", fmt.Sprintf("%d for an image of %d", sent, herd.report.Clients[0].Bytes))
		Expect(nodeBlobs(ctx, mark)).To(BeZero(), "the pod that is left must serve all")
	}, SpecTimeout(8*time.Minute))
})

// herd are pulls of one image at once.
type herd struct {
	running sync.WaitGroup
	report  containerdpull.Report // of the simulated nodes
	failure error
	real    *pulls
}

// startHerd lets the simulated nodes, which share the network of the control plane, and the real ones pull the image.
func startHerd(ctx context.Context, image sample, on ...kindcluster.Node) *herd {
	GinkgoHelper()
	for _, node := range on {
		Expect(pull.Remove(ctx, node, image.tag)).To(Succeed())
	}
	h := &herd{}
	ctx, cancel := context.WithCancel(ctx)
	h.running.Go(func() {
		out, err := nodes[0].Run(ctx, nil, herdProgram, "--hosts", pull.HostsDir, "--clients", strconv.Itoa(simulatedNodes),
			"--discard", "--platform", "linux/"+runtime.GOARCH, "--timeout", "5m", image.tag)
		h.failure = errors.Join(err, json.Unmarshal(out, &h.report))
	})
	h.real = startPulls(ctx, 1, func(context.Context, int) (string, error) { return image.tag, nil }, on...)
	DeferCleanup(func() {
		cancel()
		h.running.Wait()
	})
	return h
}

// expectAll waits until all have ended, and expects all of them to have the image.
func (h *herd) expectAll(ctx context.Context, image sample) {
	GinkgoHelper()
	expectNoneFailed("real nodes", h.real.wait(ctx))
	simulated := make(chan struct{})
	go func() {
		h.running.Wait()
		close(simulated)
	}()
	Eventually(simulated).WithContext(ctx).WithTimeout(5 * time.Minute).Should(BeClosed())
	Expect(h.failure).NotTo(HaveOccurred())
	Expect(h.report.Clients).To(HaveLen(simulatedNodes))
	Expect(h.report.Err()).NotTo(HaveOccurred())
	_, digest, _ := strings.Cut(image.digest, "@")
	for _, c := range h.report.Clients {
		Expect(c.Digest).To(Equal(digest))
		Expect(c.Bytes).To(Equal(h.report.Clients[0].Bytes))
	}
	AddReportEntry("simulated nodes", fmt.Sprintf("%d pulled %d MiB each in %.1f s with %s of containerd %s", simulatedNodes,
		h.report.Clients[0].Bytes>>20, h.report.Seconds, path.Base(herdProgram), h.report.Containerd))
}

// sentBlobs returns the bytes of blobs that the upstream has sent since the mark.
func sentBlobs(ctx context.Context, mark int64) int64 {
	GinkgoHelper()
	return sumBlobs(ctx, mark, func(upstream.Request) bool { return true })
}

// nodeBlobs is sentBlobs to nodes themselves, past the cache.
func nodeBlobs(ctx context.Context, mark int64) int64 {
	GinkgoHelper()
	return sumBlobs(ctx, mark, func(request upstream.Request) bool { return !strings.HasPrefix(request.UserAgent, "registry-cache/") })
}

func sumBlobs(ctx context.Context, mark int64, counts func(upstream.Request) bool) int64 {
	GinkgoHelper()
	requests, err := tb.Upstream.Requests(ctx, mark)
	Expect(err).NotTo(HaveOccurred())
	var sum int64
	for _, request := range requests {
		if request.Kind == upstream.Blob && request.Method == http.MethodGet && counts(request) {
			sum += request.Bytes
		}
	}
	return sum
}
