// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// reference names content of the cache, as a client without a configured upstream does.
func (c *cache) reference(t *testing.T, identifier string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(c.Address()+"/"+repository+identifier, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func TestTagsPageByPage(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{TokenHosts: []string{"docker.io"}})
	var want []string
	for i := range 7 {
		want = append(want, fmt.Sprintf("v%d", i))
		u.push(t, want[i], uint64(i))
	}
	c := start(t, u.config(t), cacheserver.Options{})
	got, err := remote.List(c.reference(t, ":v1").Context(), remote.WithContext(t.Context()), remote.WithTransport(c.transport))
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("all: %v, -want +got\n%s", err, diff)
	}
	// The upstream names no next page, so a client continues behind its last tag.
	got = nil
	for last := ""; ; last = got[len(got)-1] {
		answer := c.do(t, "GET", "tags/list?n=3&last="+last)
		var page struct {
			Name string
			Tags []string
		}
		if err := json.Unmarshal(answer.body, &page); answer.status != 200 || err != nil || page.Name != repository {
			t.Fatalf("%d %s: %v", answer.status, answer.body, err)
		}
		if got = append(got, page.Tags...); len(page.Tags) < 3 {
			break
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pages: -want +got\n%s", diff)
	}
	u.front.Close()
	if answer := c.do(t, "GET", "tags/list?n=3&last="); answer.status != 200 || answer.header.Get("Warning") == "" {
		t.Errorf("without upstream: %d, %v", answer.status, answer.header)
	}
	if answer := c.do(t, "GET", "tags/list?n=2"); answer.status != http.StatusBadGateway {
		t.Errorf("never seen, without upstream: %d", answer.status)
	}
}

// pushReferrer puts an image there that refers to another one.
func (u *origin) pushReferrer(t *testing.T, subject v1.Image) v1.Image {
	t.Helper()
	described, err := partial.Descriptor(subject)
	if err != nil {
		t.Fatal(err)
	}
	referrer, err := images.Generate(images.Spec{Seed: 100, LayerSizes: []int64{1000}})
	if err != nil {
		t.Fatal(err)
	}
	referring, ok := mutate.Subject(referrer, *described).(v1.Image)
	if !ok {
		t.Fatal("the image with a subject is none")
	}
	if err := u.Push(t.Context(), "docker.io/"+repository+"@"+digestOf(t, referring), referring); err != nil {
		t.Fatal(err)
	}
	return referring
}

func TestReferrers(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	image := u.push(t, tag, 1)
	referrer := u.pushReferrer(t, image)
	c := start(t, u.config(t), cacheserver.Options{})
	subject, ok := c.reference(t, "@"+digestOf(t, image)).(name.Digest)
	if !ok {
		t.Fatal("no digest")
	}
	check := func(step string) {
		t.Helper()
		index, err := remote.Referrers(subject, remote.WithContext(t.Context()), remote.WithTransport(c.transport))
		if err != nil {
			t.Errorf("%s: %v", step, err)
			return
		}
		manifest, err := index.IndexManifest()
		if err != nil || len(manifest.Manifests) != 1 || manifest.Manifests[0].Digest.String() != digestOf(t, referrer) {
			t.Errorf("%s: %+v, %v", step, manifest, err)
		}
	}
	check("first")
	if diff := cmp.Diff([]string{"GET referrers " + digestOf(t, image)}, withoutPings(u.requests())); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	u.inject(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	check("upstream that asks for fewer requests")
	u.inject(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusNotFound); return true })
	if got := c.do(t, "GET", "referrers/"+digestOf(t, image)); got.status != http.StatusNotFound {
		t.Errorf("upstream without the API: %d", got.status)
	}
}

func withoutPings(requests []string) []string {
	var rest []string
	for _, r := range requests {
		if r != "GET ping " {
			rest = append(rest, r)
		}
	}
	return rest
}

// A copy with referrers requests the referrers and, without that API, a tag that most repositories do not have. Clients fail
// after any other error than 404.
func TestCopyWithReferrersWithoutUpstream(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	digest := digestOf(t, u.push(t, tag, 1))
	u.inject(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/referrers/") {
			return false
		}
		w.WriteHeader(http.StatusNotFound)
		return true
	})
	cfg := u.config(t)
	c := start(t, cfg, cacheserver.Options{})
	if err := c.pull(t.Context(), tag); err != nil {
		t.Fatal(err)
	}
	fallback := "manifests/" + strings.Replace(digest, ":", "-", 1)
	copyImage := func(step string) {
		t.Helper()
		for _, request := range []struct {
			method, path string
			status       int
		}{
			{"HEAD", "manifests/" + tag, 200},
			{"GET", "manifests/" + digest, 200},
			{"GET", "referrers/" + digest, 404},
			{"HEAD", fallback, 404},
			{"GET", fallback, 404},
		} {
			if got := c.do(t, request.method, request.path); got.status != request.status {
				t.Errorf("%s: %s %s: %d, want %d", step, request.method, request.path, got.status, request.status)
			}
		}
	}
	copyImage("upstream available")
	u.front.Close()
	copyImage("upstream unavailable")
}
