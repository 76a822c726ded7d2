// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/registry-cache/extension/test/testbed/upstream"
)

func TestOutcomeCountsWhatTheUpstreamSaw(t *testing.T) {
	t.Parallel()
	const cache, node = "registry-cache/dev", "containerd/v2.3.4"
	manifest := func(agent string) upstream.Request {
		return upstream.Request{Kind: upstream.Manifest, Method: "HEAD", UserAgent: agent}
	}
	blob := func(agent string, bytes int64) upstream.Request {
		return upstream.Request{Kind: upstream.Blob, Method: "GET", UserAgent: agent, Bytes: bytes}
	}
	for _, tc := range []struct {
		name     string
		requests []upstream.Request
		want     Outcome
		servedBy string
	}{
		{"nothing at all", nil, Outcome{}, "cache"},
		{"a tag revalidated", []upstream.Request{manifest(cache)}, Outcome{Requests: 1, FromCache: 1}, "cache"},
		{"a miss", []upstream.Request{manifest(cache), blob(cache, 7), blob(cache, 5)},
			Outcome{Requests: 3, FromCache: 3, BlobRequests: 2, BlobBytes: 12}, "upstream, through the cache"},
		{"no cache", []upstream.Request{manifest(node), blob(node, 7)},
			Outcome{Requests: 2, FromNodes: 2, BlobRequests: 1, BlobBytes: 7}, "upstream, past the cache"},
		{"fallback in the middle", []upstream.Request{manifest(cache), blob(node, 7)},
			Outcome{Requests: 2, FromCache: 1, FromNodes: 1, BlobRequests: 1, BlobBytes: 7}, "cache and upstream"},
		{"a HEAD transfers nothing", []upstream.Request{{Kind: upstream.Blob, Method: "HEAD", UserAgent: cache, Bytes: 0}},
			Outcome{Requests: 1, FromCache: 1}, "cache"},
	} {
		var got Outcome
		got.count(tc.requests)
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", tc.name, diff)
		}
		if got.ServedBy() != tc.servedBy {
			t.Errorf("%s: served by %q, want %q", tc.name, got.ServedBy(), tc.servedBy)
		}
	}
}

func TestParseList(t *testing.T) {
	t.Parallel()
	const header = "REF TYPE DIGEST SIZE PLATFORMS LABELS \n"
	got, err := parseList(header +
		"docker.io/e2e/app:v1 application/vnd.oci.image.manifest.v1+json sha256:aa 1.2 MiB linux/amd64 io.cri-containerd.image=managed \n" +
		"sha256:cc            application/vnd.oci.image.manifest.v1+json sha256:aa 1.2 MiB linux/amd64 io.cri-containerd.image=managed \n")
	want := []named{{"docker.io/e2e/app:v1", "sha256:aa"}, {"sha256:cc", "sha256:aa"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(named{})); diff != "" || err != nil {
		t.Errorf("%v, (-want +got)\n%s", err, diff)
	}
	if got, err := parseList(header); len(got) != 0 || err != nil {
		t.Errorf("an empty list is read as %v, %v", got, err)
	}
	for _, bad := range []string{"", "NAME TYPE DIGEST\n", header + "docker.io/e2e/app:v1\n"} {
		if got, err := parseList(bad); err == nil {
			t.Errorf("%q is read as %v", bad, got)
		}
	}
}

// A cache of another upstream can revalidate a tag while an image is pulled.
func TestRequestsForOtherRegistriesDoNotCount(t *testing.T) {
	t.Parallel()
	got := Outcome{Reference: "quay.io:443/e2e/sample:1"}
	got.count([]upstream.Request{{Host: "docker.io", UserAgent: cacheAgent + "dev"}, {Host: "quay.io", UserAgent: "containerd/v2.3.4"}})
	want := Outcome{Reference: got.Reference, Requests: 1, FromNodes: 1}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
