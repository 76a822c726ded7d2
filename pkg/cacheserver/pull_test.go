// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

func TestSecondPullNeedsNoBlobs(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	image := u.push(t, tag, 1)
	c := start(t, u.config(t), cacheserver.Options{Version: "v1"})
	if err := c.pull(t.Context(), tag); err != nil {
		t.Fatal(err)
	}
	for _, q := range u.Requests() {
		if q.UserAgent != "registry-cache/v1" {
			t.Errorf("%s %s came from %q", q.Method, q.Reference, q.UserAgent)
		}
	}
	digests, _ := layers(t, image)
	config, err := image.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"HEAD manifest v1", "GET manifest " + digestOf(t, image), "GET blob " + config.String(), "GET blob " + digests[0], "GET blob " + digests[1]}
	got := u.requests()
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("first pull: -want +got\n%s", diff)
	}
	if err := c.pull(t.Context(), tag); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"HEAD manifest v1"}, u.requests()); diff != "" {
		t.Errorf("second pull: -want +got\n%s", diff)
	}

	// The files that a stock registry would read on this volume.
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	hex := strings.TrimPrefix(digestOf(t, image), "sha256:")
	repositories := "docker/registry/v2/repositories/" + repository
	paths := []string{
		"docker/registry/v2/blobs/sha256/" + hex[:2] + "/" + hex + "/data",
		repositories + "/_manifests/revisions/sha256/" + hex + "/link",
		repositories + "/_manifests/tags/v1/current/link",
		repositories + "/_manifests/tags/v1/index/sha256/" + hex + "/link",
		"registry-cache/last-use", // which that one does not know
		"scheduler-state.json",    // which it needs to delete something of this
	}
	for _, d := range append(digests, config.String()) {
		hex := strings.TrimPrefix(d, "sha256:")
		paths = append(paths, "docker/registry/v2/blobs/sha256/"+hex[:2]+"/"+hex+"/data", repositories+"/_layers/sha256/"+hex+"/link")
	}
	slices.Sort(paths)
	if diff := cmp.Diff(paths, files(t, c.root)); diff != "" {
		t.Errorf("files: -want +got\n%s", diff)
	}
	link, err := os.ReadFile(filepath.Join(c.root, repositories, "_manifests/tags/v1/current/link"))
	if err != nil || string(link) != digestOf(t, image) {
		t.Errorf("link of the tag: %q, %v", link, err)
	}
}

// The requests of containerd, see its remotes/docker package.
func TestContainerdsRequests(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	image := u.push(t, tag, 1)
	digests, contents := layers(t, image)
	manifest := "manifests/" + digestOf(t, image)
	c := start(t, u.config(t), cacheserver.Options{})
	for _, cold := range []bool{true, false} {
		head := c.do(t, "HEAD", "manifests/v1?ns=docker.io", "Accept", "application/vnd.oci.image.index.v1+json, */*")
		if head.status != 200 || head.header.Get("Docker-Content-Digest") != digestOf(t, image) || head.header.Get("Content-Length") == "" {
			t.Errorf("HEAD by tag: %d, %v", head.status, head.header)
		}
		get := c.do(t, "GET", manifest+"?ns=docker.io")
		raw, err := image.RawManifest()
		if get.status != 200 || !bytes.Equal(get.body, raw) || get.header.Get("Content-Type") != head.header.Get("Content-Type") || err != nil {
			t.Errorf("GET by digest: %d, %v, %v", get.status, get.header, err)
		}
		blob := c.do(t, "GET", "blobs/"+digests[0]+"?ns=docker.io", "Accept-Encoding", "zstd, gzip, deflate")
		if blob.status != 200 || !bytes.Equal(blob.body, contents[0]) || blob.header.Get("Content-Encoding") != "" || blob.err != nil {
			t.Errorf("blob: %d, %v, %v", blob.status, blob.header, blob.err)
		}
		want := []string{"HEAD manifest v1", "GET manifest " + digestOf(t, image), "GET blob " + digests[0]}
		if !cold {
			want = want[:1]
		}
		if diff := cmp.Diff(want, u.requests()); diff != "" {
			t.Errorf("cold %t: -want +got\n%s", cold, diff)
		}
		c.settle(t)
	}
	if got := c.do(t, "GET", "manifests/v1?ns=ghcr.io"); got.status != 404 {
		t.Errorf("another upstream: %d", got.status)
	}
}

// settle returns when the server has stored the content that it serves.
func (c *cache) settle(t *testing.T) {
	t.Helper()
	eventually(t, "fetches end", func() bool {
		return strings.Contains(string(c.debug(t, "/metrics").body), "\nregistry_cache_fetches_in_flight 0\n")
	})
}

func TestRanges(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	digests, contents := layers(t, u.push(t, tag, 1))
	c := start(t, u.config(t), cacheserver.Options{})
	// The first answer of each blob is a miss, the second a hit.
	for i, d := range digests {
		for range 2 {
			got := c.do(t, "GET", "blobs/"+d, "Range", "bytes=1000-")
			if got.status != 206 || !bytes.Equal(got.body, contents[i][1000:]) || got.err != nil {
				t.Errorf("status %d, %d bytes, %v", got.status, len(got.body), got.err)
			}
			if want := "bytes 1000-"; !strings.HasPrefix(got.header.Get("Content-Range"), want) {
				t.Errorf("Content-Range %q, want %s…", got.header.Get("Content-Range"), want)
			}
			c.settle(t)
		}
	}
	if diff := cmp.Diff([]string{"GET blob " + digests[0], "GET blob " + digests[1]}, u.requests()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestHeadOfBlobDownloadsNothing(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	digests, contents := layers(t, u.push(t, tag, 1))
	c := start(t, u.config(t), cacheserver.Options{})
	got := c.do(t, "HEAD", "blobs/"+digests[0])
	if got.status != 200 || got.header.Get("Content-Length") != itoa(len(contents[0])) || got.header.Get("Docker-Content-Digest") != digests[0] {
		t.Errorf("%d, %v", got.status, got.header)
	}
	if diff := cmp.Diff([]string{"HEAD blob " + digests[0]}, u.requests()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if found := files(t, c.root); len(found) > 0 {
		t.Errorf("stored: %v", found)
	}
}

func TestManyClientsCostOneTransfer(t *testing.T) {
	t.Parallel()
	const clients = 20
	u := newOrigin(t, upstream.Options{})
	u.push(t, tag, 1)
	cfg := u.config(t)
	cfg.Tags.RevalidateAfter = config.Duration(time.Hour)
	c := start(t, cfg, cacheserver.Options{})
	if err := u.Shape(upstream.Shaping{Latency: 20 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	var pulls sync.WaitGroup
	for range clients {
		pulls.Go(func() {
			if err := c.pull(t.Context(), tag); err != nil {
				t.Error(err)
			}
		})
	}
	pulls.Wait()
	counts := map[string]int{}
	for _, request := range u.requests() {
		counts[request]++
	}
	for request, n := range counts {
		if n != 1 {
			t.Errorf("%d × %s", n, request)
		}
	}
	if want := 5; len(counts) != want {
		t.Errorf("%d different requests, want %d: %v", len(counts), want, counts)
	}
}

func TestTokensAreShared(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{TokenHosts: []string{"docker.io"}})
	u.push(t, tag, 1)
	u.push(t, "v2", 2)
	c := start(t, u.config(t), cacheserver.Options{})
	for _, tag := range []string{tag, "v2", tag} {
		if err := c.pull(t.Context(), tag); err != nil {
			t.Fatal(err)
		}
	}
	tokens, refused := 0, 0
	for _, q := range u.Requests() {
		if q.Kind == upstream.Token {
			tokens++
		}
		if q.Status == http.StatusUnauthorized {
			refused++
		}
	}
	if tokens != 1 || refused != 1 {
		t.Errorf("%d tokens and %d challenges, want one of each", tokens, refused)
	}
}

func TestTagMoves(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	c := start(t, u.config(t), cacheserver.Options{})
	for seed := range uint64(3) {
		image := u.push(t, tag, seed)
		got := c.do(t, "GET", "manifests/v1")
		raw, err := image.RawManifest()
		if got.status != 200 || !bytes.Equal(got.body, raw) || got.header.Get("Docker-Content-Digest") != digestOf(t, image) || err != nil {
			t.Errorf("push %d: %d, %v, %v", seed, got.status, got.header, err)
		}
	}
}

func TestTwoServersInOneProcess(t *testing.T) {
	t.Parallel()
	one, two := newOrigin(t, upstream.Options{}), newOrigin(t, upstream.Options{})
	one.push(t, tag, 1)
	two.push(t, tag, 2)
	first, second := start(t, one.config(t), cacheserver.Options{}), start(t, two.config(t), cacheserver.Options{})
	for _, c := range []*cache{first, second} {
		if err := c.pull(t.Context(), tag); err != nil {
			t.Error(err)
		}
	}
	if got, other := one.requests(), two.requests(); slices.Equal(got, other) || len(got) != len(other) {
		t.Errorf("the upstreams got %v and %v", got, other)
	}
}
