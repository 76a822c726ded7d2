// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/oci"
)

// image returns a manifest with a config and layers of these sizes, in bytes, and their digests.
func image(sizes ...int) (content string, blobs []digest.Digest) {
	descriptors := make([]string, len(sizes))
	blobs = make([]digest.Digest, len(sizes))
	for i, size := range sizes {
		blobs[i] = digest.FromString(fmt.Sprint("blob ", i))
		descriptors[i] = fmt.Sprintf(`{"digest":%q,"size":%d}`, blobs[i], size)
	}
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, oci.MediaTypeManifest, descriptors[0], strings.Join(descriptors[1:], ",")), blobs
}

func TestExpectedSize(t *testing.T) {
	t.Parallel()
	f := newFixture(t, forEver, store.Options{})
	check := func(step string, d digest.Digest, size int64, known bool) {
		t.Helper()
		if got, ok := f.ExpectedSize(d); ok != known || ok && got != size {
			t.Errorf("%s: got %d, %t, want %d, %t", step, got, ok, size, known)
		}
	}
	pull := func(content string) {
		t.Helper()
		ref := oci.Reference{Digest: f.upstream.addManifest(repository, "v1", content)}
		if _, err := f.Get(t.Context(), repository, ref); err != nil {
			t.Fatal(err)
		}
	}
	content, blobs := image(7, 100, 200)
	check("no manifest", blobs[0], 0, false)
	pull(content)
	for i, size := range []int64{7, 100, 200} {
		check("one manifest", blobs[i], size, true)
	}
	other, _ := image(7, 101, 200)
	pull(other)
	check("two manifests that agree", blobs[0], 7, true)
	check("two manifests that contradict each other", blobs[1], 0, false)
	f.Verified(blobs[1], 100)
	check("verified", blobs[1], 100, true)
	pull(strings.Replace(other, "101", "102", 1))
	check("verified, and another manifest", blobs[1], 100, true)
	check("another blob", digest.FromString("other"), 0, false)

	stored := digest.FromString("beside a layer with a digest of another algorithm")
	pull(fmt.Sprintf(`{"schemaVersion":2,"config":{"digest":%q,"size":1},"layers":[{"digest":"sha512:%s","size":2}]}`, stored, strings.Repeat("0", 128)))
	check("manifest with a layer of another algorithm", stored, 1, true)

	invalid := strings.Replace(content, `,"size":200`, `,"size":-1`, 1)
	invalid = strings.Replace(invalid, blobs[0].String(), digest.FromString("of an invalid manifest").String(), 1)
	pull(invalid)
	check("manifest with an invalid descriptor", digest.FromString("of an invalid manifest"), 0, false)
}

func TestBlobsAreLimited(t *testing.T) {
	t.Parallel()
	b := newBlobs(nil, nil)
	for n := range 2 * maxSizes / 1000 {
		references := make([]string, 1000)
		for i := range references {
			references[i] = fmt.Sprintf(`{"digest":"sha256:%064x","size":1}`, n*1000+i)
		}
		content := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, oci.MediaTypeManifest, references[0], strings.Join(references, ","))
		b.record(manifestKey{repository, digest.FromString(content)}, []byte(content))
		newest := digest.Digest(fmt.Sprintf("sha256:%064x", n*1000+999))
		if size, ok := b.expectedSize(newest); size != 1 || !ok {
			t.Fatalf("after %d manifests: the newest blob has the size %d, %t", n, size, ok)
		}
		if owner, ok := b.owner(ownerKey{repository, sumOf(newest)}); !ok || owner.digest() != digest.FromString(content) {
			t.Fatalf("after %d manifests: the newest blob belongs to %s, %t", n, owner.digest(), ok)
		}
	}
	if b.sizes.Size() != maxSizes || b.owners.Size() != maxOwners {
		t.Errorf("%d sizes and %d owners", b.sizes.Size(), b.owners.Size())
	}
}

// B01: an upstream that is a cache has deleted an image, and imports it when its manifest is requested.
func TestImport(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, forEver, store.Options{})
		defer f.group.Close()
		content, blobs := image(7, 100, 200)
		d := f.upstream.addManifest(repository, "v1", content)
		getManifest := "GET" + byDigest + d.String()
		f.want(t, "pull", oci.Reference{Digest: d}, content, result.Miss, getManifest)
		check := func(step, repository string, blob digest.Digest, want bool, reason result.Reason, calls ...string) {
			t.Helper()
			got, err := f.Import(t.Context(), repository, blob)
			if got != want || err != nil != (reason >= 0) || err != nil && reasonOf(result.Explain(err)) != reason {
				t.Errorf("%s: got %t, %v", step, got, err)
			}
			f.wantCalls(t, step, calls...)
		}
		check("blob of no manifest", repository, digest.FromString("other"), false, -1)
		check("blob of another repository", "library/other", blobs[1], false, -1)
		var pulls sync.WaitGroup
		for _, blob := range blobs {
			pulls.Go(func() {
				if requested, err := f.Import(t.Context(), repository, blob); !requested || err != nil {
					t.Errorf("%s: %t, %v", blob, requested, err)
				}
			})
		}
		pulls.Wait()
		f.wantCalls(t, "all blobs of one pull", getManifest)
		check("within a minute", repository, blobs[1], true, -1)
		time.Sleep(importAgainAfter)
		check("after a minute", repository, blobs[1], true, -1, getManifest)
		time.Sleep(importAgainAfter)
		f.failWith(status(http.StatusBadGateway))
		check("upstream fails", repository, blobs[1], false, result.Unavailable, getManifest)
		f.failWith(status(http.StatusNotFound))
		check("manifest was deleted", repository, blobs[1], false, result.NotFound, getManifest)
		check("manifest was deleted, again", repository, blobs[1], false, result.NotFound, getManifest)
		check("manifest was deleted, and no request", repository, blobs[1], false, result.NotFound)
	})
}

// A6: the upstream has moved a tag and deleted the previous image, of which only the manifests are stored. The first pull
// within Options.RevalidateAfter fails; the next one gets the new image.
func TestTagOfADeletedImage(t *testing.T) {
	t.Parallel()
	f := newFixture(t, forEver, store.Options{})
	content, blobs := image(7, 100)
	child := f.upstream.addManifest(repository, "platform", content)
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"digest":%q,"size":%d}]}`, oci.MediaTypeIndex, child, len(content))
	f.upstream.addManifest(repository, "v1", index)
	if _, err := f.Get(t.Context(), repository, byTag); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Get(t.Context(), repository, oci.Reference{Digest: child}); err != nil {
		t.Fatal(err)
	}
	f.upstream.remove(repository + "@" + child.String())
	f.upstream.addManifest(repository, "v1", newManifest)
	f.upstream.seen()

	if _, err := f.Import(t.Context(), repository, blobs[1]); reasonOf(result.Explain(err)) != result.NotFound {
		t.Fatalf("blob of a deleted image: %v", err)
	}
	f.wantCalls(t, "blob of a deleted image", "GET"+byDigest+child.String())
	f.want(t, "next pull", byTag, newManifest, result.Miss, headTag, "GET"+byDigest+newDigest.String())
}
