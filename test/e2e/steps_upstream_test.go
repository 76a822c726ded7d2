// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// sample is an image that nobody has seen before.
type sample struct {
	// tag and digest are the two references of it: "host/repository:tag" and "host/repository@sha256:<hex>".
	tag, digest string
}

// path returns what comes after the host in a reference, with the word of the API between: "repository/manifests/tag".
func manifestPath(reference string) string {
	_, path, _ := strings.Cut(reference, "/")
	if repository, digest, ok := strings.Cut(path, "@"); ok {
		return repository + "/manifests/" + digest
	}
	repository, tag, _ := strings.Cut(path, ":")
	return repository + "/manifests/" + tag
}

// small is for what is about requests and not about bytes.
var small = images.Spec{LayerSizes: []int64{64 << 10, 32 << 10}}

// newSample puts an image of the shape on the upstream, with content that no node and no cache can have, unless the shape
// has a seed.
func newSample(ctx context.Context, host string, shape images.Spec) sample {
	GinkgoHelper()
	made, err := makeSample(ctx, host, shape)
	Expect(err).NotTo(HaveOccurred())
	return made
}

// madeSamples has the digests of what makeSample made, by tag.
var madeSamples sync.Map

func makeSample(ctx context.Context, host string, shape images.Spec) (sample, error) {
	now := time.Now().UnixNano()
	repository := host + "/e2e/sample"
	tag := fmt.Sprintf("%s:%d", repository, now)
	if shape.Seed == 0 {
		shape.Seed = uint64(now)
	}
	digest, err := tb.Upstream.Generate(ctx, tag, shape)
	if err == nil {
		madeSamples.Store(tag, digest)
	}
	return sample{tag: tag, digest: repository + "@" + digest}, err
}

// breakUpstream lets the upstream misbehave until the spec ends, or healUpstream.
func breakUpstream(ctx context.Context, faults ...upstream.Fault) {
	GinkgoHelper()
	DeferCleanup(healUpstream, NodeTimeout(time.Minute))
	Expect(tb.Upstream.Break(ctx, faults...)).To(Succeed())
}

// healUpstream ends all faults.
func healUpstream(ctx context.Context) {
	GinkgoHelper()
	Expect(tb.Upstream.Break(ctx)).To(Succeed())
}

// upstreamAddress returns the IP address that stands for all upstreams, as the nodes resolve it.
func upstreamAddress(ctx context.Context) string {
	GinkgoHelper()
	out, err := nodes[0].Run(ctx, nil, "getent", "ahostsv4", "registry-1.docker.io")
	Expect(err).NotTo(HaveOccurred())
	fields := strings.Fields(string(out))
	Expect(fields).NotTo(BeEmpty())
	return fields[0]
}
