// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/go-containerregistry/pkg/crane"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"go.uber.org/goleak"

	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// always ignores what differs from run to run.
var always = cmpopts.IgnoreFields(upstream.Request{}, "ID", "Time", "Duration", "RemoteAddr", "UserAgent")

func TestPullByCrane(t *testing.T) {
	t.Parallel()
	registry := upstream.Start(t, upstream.Options{TokenHosts: []string{"registry-1.docker.io"}})
	image := push(t, registry, "docker.io/library/alpine:3.13.2", images.Spec{Seed: 1, LayerSizes: []int64{100_000}})

	pulled, err := crane.Pull("docker.io/library/alpine:3.13.2", crane.WithTransport(transport(t, registry)))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(pulled); err != nil {
		t.Errorf("the pulled image is not valid: %v", err)
	}
	manifest, digest := manifestOf(t, image), digestOf(t, image)
	const host, repository = "docker.io", "library/alpine"
	want := []upstream.Request{
		{Method: "GET", Host: host, Kind: upstream.Ping, Status: 401},
		{Method: "GET", Host: host, Kind: upstream.Token, Repository: repository, Status: 200},
		{
			Method: "GET", Host: host, Kind: upstream.Manifest, Repository: repository, Reference: "3.13.2",
			Digest: digest, Status: 200, Bytes: size(t, image),
		},
		blobRequest(manifest.Layers[0], host, repository),
		blobRequest(manifest.Config, host, repository),
	}
	got := registry.Requests()
	if diff := cmp.Diff(want, distinct(got), always, ignoreBytesOf(upstream.Ping, upstream.Token)); diff != "" {
		t.Errorf("request log (-want +got):\n%s", diff)
	}
	for i, q := range got {
		if q.ID != int64(i+1) || q.Time.IsZero() || q.RemoteAddr == "" || q.UserAgent == "" {
			t.Errorf("entry %d of the log lacks what every entry has: %+v", i, q)
		}
	}
}

// The requests of containerd's pull by tag: HEAD of the tag, GET of manifests and blobs by digest, and a resumed blob.
func TestPullLikeContainerd(t *testing.T) {
	t.Parallel()
	registry := upstream.Start(t, upstream.Options{})
	index, err := images.Index(
		images.Spec{Seed: 5, LayerSizes: []int64{70_000}, Architecture: "amd64"},
		images.Spec{Seed: 5, LayerSizes: []int64{1}, Architecture: "arm64", Variant: "v8"},
	)
	if err != nil {
		t.Fatal(err)
	}
	if err := registry.Push(t.Context(), "quay.io/registry-cache/sample:v1", index); err != nil {
		t.Fatal(err)
	}
	list, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	child := list.Manifests[0]
	image, err := index.Image(child.Digest)
	if err != nil {
		t.Fatal(err)
	}
	layer := manifestOf(t, image).Layers[0]
	const base = "https://quay.io/v2/registry-cache/sample"
	client := http.Client{Transport: transport(t, registry)}

	head := do(t, client, "HEAD", base+"/manifests/v1", nil)
	wantHeader(t, head, "Docker-Content-Digest", digestOf(t, index))
	wantHeader(t, head, "Content-Type", string(types.DockerManifestList))
	wantHeader(t, head, "Content-Length", fmt.Sprint(size(t, index)))

	manifest := do(t, client, "GET", base+"/manifests/"+child.Digest.String(), nil)
	wantHeader(t, manifest, "Content-Type", string(types.DockerManifestSchema2))
	wantDigest(t, manifest.body, child.Digest)

	blob := do(t, client, "GET", base+"/blobs/"+layer.Digest.String(), nil)
	wantHeader(t, blob, "Content-Type", "application/octet-stream")
	wantHeader(t, blob, "Content-Length", fmt.Sprint(layer.Size))
	wantDigest(t, blob.body, layer.Digest)

	resumed := do(t, client, "GET", base+"/blobs/"+layer.Digest.String(), http.Header{"Range": {"bytes=60000-"}})
	wantHeader(t, resumed, "Content-Range", fmt.Sprintf("bytes 60000-%d/%d", layer.Size-1, layer.Size))
	if resumed.StatusCode != http.StatusPartialContent || resumed.body != blob.body[60000:] {
		t.Errorf("the resumed blob has status %d and %d bytes, want 206 and the last %d", resumed.StatusCode, len(resumed.body), layer.Size-60000)
	}

	request := func(method string, kind upstream.Kind, reference, digest string, status int, bytes int64) upstream.Request {
		return upstream.Request{
			Method: method, Host: "quay.io", Kind: kind, Repository: "registry-cache/sample",
			Reference: reference, Digest: digest, Status: status, Bytes: bytes,
		}
	}
	partial := request("GET", upstream.Blob, layer.Digest.String(), layer.Digest.String(), 206, layer.Size-60000)
	partial.Range = "bytes=60000-"
	want := []upstream.Request{
		request("HEAD", upstream.Manifest, "v1", digestOf(t, index), 200, 0),
		request("GET", upstream.Manifest, child.Digest.String(), child.Digest.String(), 200, child.Size),
		request("GET", upstream.Blob, layer.Digest.String(), layer.Digest.String(), 200, layer.Size),
		partial,
	}
	got := registry.Requests()
	if diff := cmp.Diff(want, got, always); diff != "" {
		t.Errorf("request log (-want +got):\n%s", diff)
	}
	wantSummary := []upstream.Summary{{
		Host: "quay.io", Repository: "registry-cache/sample",
		Requests:  map[upstream.Kind]int{upstream.Manifest: 2, upstream.Blob: 2},
		BlobBytes: 2*layer.Size - 60000,
		Blobs:     map[string]int64{layer.Digest.String(): 2*layer.Size - 60000},
	}}
	if diff := cmp.Diff(wantSummary, upstream.Summarise(got)); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
}

func TestHeadOfABlobSendsNothing(t *testing.T) {
	t.Parallel()
	registry := upstream.Start(t, upstream.Options{})
	image := push(t, registry, "docker.io/team/app:v1", images.Spec{Seed: 1, LayerSizes: []int64{5000}})
	layer := manifestOf(t, image).Layers[0]
	client := http.Client{Transport: transport(t, registry)}
	answer := do(t, client, "HEAD", registry.URL+"/v2/team/app/blobs/"+layer.Digest.String(), nil)
	wantHeader(t, answer, "Content-Length", fmt.Sprint(layer.Size))
	wantHeader(t, answer, "Docker-Content-Digest", layer.Digest.String())
	log := registry.Requests()
	want := blobRequest(layer, "docker.io", "team/app")
	want.Method, want.Bytes = "HEAD", 0
	if diff := cmp.Diff([]upstream.Request{want}, log, always); diff != "" {
		t.Errorf("request log (-want +got):\n%s", diff)
	}
	if summary := upstream.Summarise(log)[0]; summary.Requests[upstream.Blob] != 1 || len(summary.Blobs) != 0 {
		t.Errorf("the summary is %+v, want one blob request and no transfer", summary)
	}
}

func TestHostsAreSeparate(t *testing.T) {
	t.Parallel()
	registry := upstream.Start(t, upstream.Options{})
	docker := push(t, registry, "docker.io/team/app:v1", images.Spec{Seed: 1, LayerSizes: []int64{10}})
	github := push(t, registry, "ghcr.io/team/app:v1", images.Spec{Seed: 2, LayerSizes: []int64{10}})
	client := http.Client{Transport: transport(t, registry)}

	for host, want := range map[string]int{
		"https://docker.io": 200, "https://registry-1.docker.io": 200, "https://REGISTRY-1.docker.io:443": 200,
		"https://index.docker.io": 200, registry.URL: 200, "https://ghcr.io": 404, "https://quay.io": 404,
	} {
		for _, path := range []string{
			"/manifests/" + digestOf(t, docker), "/blobs/" + manifestOf(t, docker).Config.Digest.String(),
		} {
			if a := do(t, client, "GET", host+"/v2/team/app"+path, nil); a.StatusCode != want {
				t.Errorf("GET %s%s is answered %d, want %d", host, path, a.StatusCode, want)
			}
		}
	}
	answer := do(t, client, "HEAD", "https://ghcr.io/v2/team/app/manifests/v1", nil)
	wantHeader(t, answer, "Docker-Content-Digest", digestOf(t, github))

	// A blob belongs to the repositories that it was pushed to, not to the whole registry.
	config := manifestOf(t, docker).Config.Digest.String()
	if a := do(t, client, "GET", "https://docker.io/v2/team/other/blobs/"+config, nil); a.StatusCode != 404 {
		t.Errorf("another repository's blob is answered %d, want 404", a.StatusCode)
	}
}

func TestErrorsAreOCI(t *testing.T) {
	t.Parallel()
	registry := upstream.Start(t, upstream.Options{})
	push(t, registry, "docker.io/team/app:v1", images.Spec{Seed: 1, LayerSizes: []int64{10}})
	client := http.Client{Transport: transport(t, registry)}
	absent := "sha256:" + strings.Repeat("0", 64)
	for name, tc := range map[string]struct {
		method, path string
		status       int
		code         string
		kind         upstream.Kind
	}{
		"push of a blob":      {"POST", "/v2/team/app/blobs/uploads/", 405, "UNSUPPORTED", upstream.Other},
		"push of a manifest":  {"PUT", "/v2/team/app/manifests/v1", 405, "UNSUPPORTED", upstream.Manifest},
		"deletion":            {"DELETE", "/v2/team/app/manifests/v1", 405, "UNSUPPORTED", upstream.Manifest},
		"unknown tag":         {"GET", "/v2/team/app/manifests/v2", 404, "MANIFEST_UNKNOWN", upstream.Manifest},
		"unknown repository":  {"GET", "/v2/team/none/manifests/v1", 404, "NAME_UNKNOWN", upstream.Manifest},
		"unknown blob":        {"GET", "/v2/team/app/blobs/" + absent, 404, "BLOB_UNKNOWN", upstream.Blob},
		"bad digest":          {"GET", "/v2/team/app/blobs/sha256:1", 400, "DIGEST_INVALID", upstream.Blob},
		"catalogue":           {"GET", "/v2/_catalog", 404, "UNSUPPORTED", upstream.Other},
		"token without need":  {"GET", "/token?scope=repository:team/app:pull", 404, "UNSUPPORTED", upstream.Token},
		"path without a name": {"GET", "/v2/manifests/v1", 404, "UNSUPPORTED", upstream.Other},
	} {
		t.Run(name, func(t *testing.T) {
			answer := do(t, client, tc.method, registry.URL+tc.path, nil)
			wantHeader(t, answer, "Content-Type", "application/json")
			var body struct{ Errors []struct{ Code string } }
			if err := json.Unmarshal([]byte(answer.body), &body); err != nil || len(body.Errors) != 1 {
				t.Fatalf("the body is %q, %v", answer.body, err)
			}
			if answer.StatusCode != tc.status || body.Errors[0].Code != tc.code {
				t.Errorf("got %d %s, want %d %s", answer.StatusCode, body.Errors[0].Code, tc.status, tc.code)
			}
			log := registry.Requests()
			if last := log[len(log)-1]; last.Kind != tc.kind || last.Status != tc.status || last.Method != tc.method {
				t.Errorf("logged %s %s %d, want %s %s %d", last.Method, last.Kind, last.Status, tc.method, tc.kind, tc.status)
			}
		})
	}
}

func TestTagsAndReferrers(t *testing.T) {
	t.Parallel()
	registry := upstream.Start(t, upstream.Options{})
	image := push(t, registry, "ghcr.io/team/app:v1", images.Spec{Seed: 1, LayerSizes: []int64{10}})
	push(t, registry, "ghcr.io/team/app:v2", images.Spec{Seed: 2, LayerSizes: []int64{10}})
	subject := v1.Descriptor{MediaType: types.DockerManifestSchema2, Digest: hash(t, digestOf(t, image)), Size: size(t, image)}
	signature := mutate.Subject(mutate.MediaType(empty.Image, types.OCIManifestSchema1), subject).(v1.Image)
	if err := registry.Push(t.Context(), "ghcr.io/team/app@"+digestOf(t, signature), signature); err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: transport(t, registry)}

	var tags struct{ Tags []string }
	decode(t, do(t, client, "GET", "https://ghcr.io/v2/team/app/tags/list", nil), &tags)
	if diff := cmp.Diff([]string{"v1", "v2"}, tags.Tags); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
	var referrers v1.IndexManifest
	decode(t, do(t, client, "GET", "https://ghcr.io/v2/team/app/referrers/"+digestOf(t, image), nil), &referrers)
	if n := len(referrers.Manifests); n != 1 || referrers.Manifests[0].Digest.String() != digestOf(t, signature) {
		t.Errorf("the referrers are %+v, want %s", referrers.Manifests, digestOf(t, signature))
	}
	kinds := []upstream.Kind{registry.Requests()[0].Kind, registry.Requests()[1].Kind}
	if diff := cmp.Diff([]upstream.Kind{upstream.Tags, upstream.Referrers}, kinds); diff != "" {
		t.Errorf("logged kinds (-want +got):\n%s", diff)
	}
}

func TestBlobsOutliveTheProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	image, err := images.Generate(images.Spec{Seed: 1, LayerSizes: []int64{5000}})
	if err != nil {
		t.Fatal(err)
	}
	layer := manifestOf(t, image).Layers[0].Digest
	first := upstream.Start(t, upstream.Options{Dir: dir})
	if err := first.Push(t.Context(), "docker.io/team/app:v1", image); err != nil {
		t.Fatal(err)
	}
	first.Stop()
	file := filepath.Join(dir, "sha256", layer.Hex)
	marked := time.Unix(1_000_000_000, 0)
	if err := os.Chtimes(file, marked, marked); err != nil {
		t.Fatal(err)
	}

	second := upstream.Start(t, upstream.Options{Dir: dir})
	client := http.Client{Transport: transport(t, second)}
	url := second.URL + "/v2/team/app/blobs/" + layer.String()
	if a := do(t, client, "GET", url, nil); a.StatusCode != http.StatusNotFound {
		t.Errorf("a blob that was not pushed to this server is answered %d, want 404", a.StatusCode)
	}
	if err := second.Push(t.Context(), "docker.io/team/app:v1", image); err != nil {
		t.Fatal(err)
	}
	wantDigest(t, do(t, client, "GET", url, nil).body, layer)
	if info, err := os.Stat(file); err != nil || !info.ModTime().Equal(marked) {
		t.Errorf("the second push wrote the blob again: %v, %v", info.ModTime(), err)
	}
}

// Memory is measured as everything that was ever allocated, so that the garbage collector has no say. It counts the
// client too. The test must not run beside others.
func TestLargeImagesTakeNoMemory(t *testing.T) {
	registry := upstream.Start(t, upstream.Options{})
	client := http.Client{Transport: transport(t, registry)}
	const layerSize, layers, limit = 20 << 20, 5, 40 << 20 // 9 MB are measured, 24 MB under the race detector
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	image := push(t, registry, "docker.io/team/large:v1", images.Spec{Seed: 1, LayerSizes: slices.Repeat([]int64{layerSize}, layers)})
	var total int64
	for _, layer := range manifestOf(t, image).Layers {
		answer, err := client.Get(registry.URL + "/v2/team/large/blobs/" + layer.Digest.String())
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, answer.Body)
		if err != nil || n != layer.Size {
			t.Fatalf("layer has %d bytes, %v; want %d", n, err, layer.Size)
		}
		answer.Body.Close()
		total += n
	}
	runtime.ReadMemStats(&after)
	if allocated := after.TotalAlloc - before.TotalAlloc; allocated > limit {
		t.Errorf("pushing and pulling %d bytes allocated %d, want at most %d", total, allocated, limit)
	}
}

func TestPushRefusesBadInput(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	registry := upstream.Start(t, upstream.Options{Dir: dir})
	if err := registry.Push(t.Context(), "docker.io/Team/app:v1", empty.Image); err == nil || !strings.HasPrefix(err.Error(), "reference: ") {
		t.Errorf("a reference with a capital gives the error %v", err)
	}
	if err := registry.Push(t.Context(), "docker.io/team/app:v1", broken{empty.Image}); err == nil || !strings.Contains(err.Error(), "content has digest") {
		t.Errorf("an image whose config has another digest gives the error %v", err)
	}
	if n, err := filepath.Glob(filepath.Join(dir, "incoming-*")); len(n) != 0 || err != nil {
		t.Errorf("the refused push left %v, %v", n, err)
	}
}

// broken is an image with one layer whose content has another digest than its descriptor.
type broken struct{ v1.Image }

func (b broken) Layers() ([]v1.Layer, error) { return []v1.Layer{brokenLayer{}}, nil }

type brokenLayer struct{ v1.Layer }

func (brokenLayer) Digest() (v1.Hash, error) {
	return v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("a", 64)}, nil
}
func (brokenLayer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("content")), nil
}

type answer struct {
	*http.Response
	body string
}

func do(t *testing.T, client http.Client, method, url string, header http.Header) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		r.Header[name] = values
	}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return answer{response, string(body)}
}

func decode(t *testing.T, a answer, into any) {
	t.Helper()
	if a.StatusCode != http.StatusOK {
		t.Fatalf("%s is answered %d: %s", a.Request.URL, a.StatusCode, a.body)
	}
	if err := json.Unmarshal([]byte(a.body), into); err != nil {
		t.Fatalf("%s: %v", a.Request.URL, err)
	}
}

func wantHeader(t *testing.T, a answer, name, want string) {
	t.Helper()
	if got := a.Header.Get(name); got != want {
		t.Errorf("%s %s (%d): %s is %q, want %q", a.Request.Method, a.Request.URL, a.StatusCode, name, got, want)
	}
}

func wantDigest(t *testing.T, body string, want v1.Hash) {
	t.Helper()
	sum := sha256.Sum256([]byte(body))
	if got := hex.EncodeToString(sum[:]); got != want.Hex {
		t.Errorf("the body of %d bytes has digest %s, want %s", len(body), got, want.Hex)
	}
}

func push(t *testing.T, registry *upstream.Instance, reference string, spec images.Spec) v1.Image {
	t.Helper()
	image, err := images.Generate(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := registry.Push(t.Context(), reference, image); err != nil {
		t.Fatal(err)
	}
	return image
}

func transport(t *testing.T, registry *upstream.Instance) *http.Transport {
	t.Helper()
	transport := registry.Transport()
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

func manifestOf(t *testing.T, image v1.Image) *v1.Manifest {
	t.Helper()
	manifest, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	return manifest
}

func digestOf(t *testing.T, artifact images.Artifact) string {
	t.Helper()
	digest, err := artifact.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.String()
}

func size(t *testing.T, artifact images.Artifact) int64 {
	t.Helper()
	raw, err := artifact.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	return int64(len(raw))
}

func hash(t *testing.T, digest string) v1.Hash {
	t.Helper()
	h, err := v1.NewHash(digest)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func blobRequest(d v1.Descriptor, host, repository string) upstream.Request {
	digest := d.Digest.String()
	return upstream.Request{
		Method: "GET", Host: host, Kind: upstream.Blob, Repository: repository,
		Reference: digest, Digest: digest, Status: 200, Bytes: d.Size,
	}
}

// distinct drops repeated requests for the same thing: validating an image reads its layer several times.
func distinct(requests []upstream.Request) []upstream.Request {
	type key struct {
		kind      upstream.Kind
		reference string
	}
	seen := map[key]bool{}
	return slices.DeleteFunc(slices.Clone(requests), func(q upstream.Request) bool {
		k := key{q.Kind, q.Reference}
		defer func() { seen[k] = true }()
		return seen[k]
	})
}

func ignoreBytesOf(kinds ...upstream.Kind) cmp.Option {
	return cmp.Transformer("withoutBytes", func(q upstream.Request) upstream.Request {
		if slices.Contains(kinds, q.Kind) {
			q.Bytes = 0
		}
		return q
	})
}

func generated(t *testing.T, spec images.Spec) v1.Image {
	t.Helper()
	image, err := images.Generate(spec)
	if err != nil {
		t.Fatal(err)
	}
	return image
}
