// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"fmt"
	"net/http"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/store/layout"
	"github.com/registry-cache/extension/pkg/oci"
)

// imageOf returns the manifest of an image with the content of its config and its layer.
func imageOf(config, layer string) string {
	descriptor := func(mediaType, content string) string {
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, digest.FromString(content), len(content))
	}
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, oci.MediaTypeManifest,
		descriptor("application/vnd.oci.image.config.v1+json", config), descriptor("application/vnd.oci.image.layer.v1.tar", layer))
}

// indexOf returns an index of manifests.
func indexOf(manifests ...string) string {
	list := ""
	for i, m := range manifests {
		if i > 0 {
			list += ","
		}
		list += fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, oci.MediaTypeManifest, digest.FromString(m), len(m))
	}
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, oci.MediaTypeIndex, list)
}

// put stores content for the repository.
func (f *fixture) put(t *testing.T, contents ...string) {
	t.Helper()
	for _, content := range contents {
		if err := f.store.PutManifest(repository, digest.FromString(content), []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
}

// read lets a client read a manifest by digest, which stores it.
func (f *fixture) read(t *testing.T, content string) {
	t.Helper()
	f.upstream.addManifest(repository, "other", content)
	if _, err := f.Get(t.Context(), repository, oci.Reference{Digest: digest.FromString(content)}); err != nil {
		t.Fatal(err)
	}
	f.upstream.seen()
}

// wantTag requests the tag and compares the digest and the calls of the upstream.
func (f *fixture) wantTag(t *testing.T, step, content string, outcome result.Outcome, calls ...string) {
	t.Helper()
	m, err := f.Stat(t.Context(), repository, byTag)
	if err != nil {
		t.Errorf("%s: %v", step, err)
		return
	}
	if want := digest.FromString(content); m.Digest != want || m.Outcome != outcome {
		t.Errorf("%s: %s, %s, want %s, %s", step, m.Digest, m.Outcome, want, outcome)
	}
	f.wantCalls(t, step, calls...)
}

// A6: as long as an image is not stored completely, its pull needs the upstream anyway. Therefore a tag is confirmed, so that a
// client does not get an image whose missing content the upstream has deleted.
func TestTagOfAnIncompleteImage(t *testing.T) {
	t.Parallel()
	before, after := imageOf("config", "layer"), imageOf("config", "other layer")
	f := newFixture(t, forEver, store.Options{})
	f.upstream.addManifest(repository, "v1", before)
	f.wantTag(t, "first", before, result.Miss, headTag)
	f.wantTag(t, "manifest not stored", before, result.Miss, "GET"+byDigest+digest.FromString(before).String())
	f.wantTag(t, "no blob", before, result.Hit, headTag)
	f.put(t, "config")
	f.wantTag(t, "no layer", before, result.Hit, headTag)

	f.upstream.addManifest(repository, "v1", after)
	f.wantTag(t, "moved", after, result.Miss, headTag)
	f.put(t, after, "other layer")
	f.wantTag(t, "complete", after, result.Hit)

	f.upstream.addManifest(repository, "v1", before)
	f.wantTag(t, "complete and moved", after, result.Hit)
}

// The content of one manifest of an index is sufficient.
func TestTagOfAnIncompleteIndex(t *testing.T) {
	t.Parallel()
	first, second := imageOf("config 1", "layer 1"), imageOf("config 2", "layer 2")
	index := indexOf(first, second)
	f := newFixture(t, forEver, store.Options{})
	f.upstream.addManifest(repository, "v1", index)
	f.wantTag(t, "first", index, result.Miss, headTag)
	f.put(t, index)
	f.wantTag(t, "no manifest", index, result.Hit, headTag)
	f.read(t, first)
	f.wantTag(t, "no blob", index, result.Hit, headTag)
	f.put(t, "config 1", "layer 1")
	f.read(t, second)
	f.wantTag(t, "no blob of the second manifest", index, result.Hit, headTag)
	f.put(t, "config 2", "layer 2")
	f.wantTag(t, "complete", index, result.Hit)
}

// An upstream that fails does not delay each pull of an incomplete image, and the answer of the last seconds is used.
func TestIncompleteImageWithoutUpstream(t *testing.T) {
	t.Parallel()
	image := imageOf("config", "layer")
	f := newFixture(t, forEver, store.Options{})
	f.upstream.addManifest(repository, "v1", image)
	f.wantTag(t, "first", image, result.Miss, headTag)
	f.put(t, image)
	f.failWith(status(http.StatusServiceUnavailable))
	f.wantTag(t, "failed", image, result.Stale, headTag)
	f.wantTag(t, "failed before", image, result.Stale)
}

// The content of an image can be evicted after it was found to be complete.
func TestTagOfAnEvictedImage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		image := imageOf("config", "layer")
		f := newFixture(t, forEver, store.Options{})
		f.upstream.addManifest(repository, "v1", image)
		f.wantTag(t, "first", image, result.Miss, headTag)
		f.put(t, image, "config", "layer")
		f.wantTag(t, "complete", image, result.Hit)
		path := layout.Root(f.root).Data(digest.FromString("layer"))
		info, err := os.Stat(path)
		if err == nil {
			err = f.store.Drop(digest.FromString("layer"), info, "test")
		}
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(completeTime)
		f.wantTag(t, "evicted", image, result.Hit, headTag)
	})
}

// Requests for a tag are no uses of the manifests that clients of other platforms have read.
func TestTagIsNoUseOfOtherManifests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		first, second := imageOf("config 1", "layer 1"), imageOf("config 2", "layer 2")
		index := indexOf(first, second)
		f := newFixture(t, forEver, store.Options{})
		f.upstream.addManifest(repository, "v1", index)
		f.wantTag(t, "first", index, result.Miss, headTag)
		f.put(t, index, "config 1", "layer 1")
		f.read(t, first)
		f.read(t, second)
		read := time.Now()
		time.Sleep(time.Hour - time.Second)
		f.wantTag(t, "second platform incomplete", index, result.Hit, headTag)
		for _, r := range f.store.Maintain(f.store.Collector()).Index().Records() {
			if want := r.Digest == digest.FromString(index); r.LastUse.After(read) != want {
				t.Errorf("%s: used at %s, after the clients: want %t", r.Digest, r.LastUse, want)
			}
		}
	})
}
