// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"bytes"
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
	"github.com/registry-cache/extension/test/testbed/containerdpull"
	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// The clients that count: the code of containerd 1.7 and 2.x, as hack/containerd-pull pins them, with a hosts.toml as
// the extension writes it.
func TestContainerd(t *testing.T) {
	t.Parallel()
	for _, name := range containerdpull.Names() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			command, err := containerdpull.Build(t.Context(), name, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			tests := map[string]func(*testing.T, containerd){
				"media types":                testMediaTypes,
				"TLS":                        testCacheWithTLS,
				"upstream breaks off":        testUpstreamBreaksOff,
				"upstream goes silent":       testUpstreamGoesSilent,
				"upstream fails":             testUpstreamFails,
				"upstream limits the rate":   testUpstreamLimitsTheRate,
				"upstream sends wrong bytes": testUpstreamSendsWrongBytes,
				"cache is gone":              testCacheIsGone,
				"cache is killed":            testCacheIsKilled,
				"herd":                       testHerd,
				"full volume":                testFullVolume,
				"flipped bit":                testFlippedBit,
			}
			if name == "containerd-v2" {
				tests["parallel chunks"] = testParallelChunks
				tests["flipped bit, parallel chunks"] = testFlippedBitInChunks
				// The content store of containerd 1.7 supports sha256 only.
				tests["digest of another algorithm"] = testOtherAlgorithm
			}
			for name, test := range tests {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					test(t, containerd{command})
				})
			}
		})
	}
}

// containerd is a client that was built.
type containerd struct{ containerdpull.Command }

// reference is how the client calls the images in the repository of the tests; identifier is ":<tag>" or "@<digest>".
func reference(identifier string) string { return "docker.io/" + repository + identifier }

func (n containerd) pull(t *testing.T, o containerdpull.Options) containerdpull.Report {
	t.Helper()
	o.Timeout, o.Log = time.Minute, t.Output()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	// No process listens there: requests to other hosts than the loopback addresses, which need no proxy, fail immediately.
	o.Env = []string{"HTTP_PROXY=http://127.0.0.1:1", "HTTPS_PROXY=http://127.0.0.1:1"}
	report, err := n.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(o.Dir, "*")); err != nil || len(left) > 0 {
		t.Errorf("the command left %v, %v", left, err)
	}
	return report
}

// patient is a line of hosts for many clients in one process, which can need more than 200 ms to connect.
const patient = `dial_timeout = "10s"`

// hosts writes certs.d for the registry: the cache first, then the upstream. The lines are added for the cache.
func (u *origin) hosts(t *testing.T, cacheURL string, lines ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "docker.io"), 0o755); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(lines, patient) {
		lines = append(lines, `dial_timeout = "200ms"`)
	}
	content := fmt.Sprintf(`server = %q
ca = %q

[host.%q]
  capabilities = ["pull", "resolve"]
%s
`, u.front.URL, u.caFile, cacheURL, strings.Join(lines, "\n"))
	if err := os.WriteFile(filepath.Join(dir, "docker.io", "hosts.toml"), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (c *cache) url() string { return c.scheme + "://" + c.Address() }

// wantPulled checks that all clients have the image, which the digest names directly or in an index.
func wantPulled(t *testing.T, report containerdpull.Report, digest string, image v1.Image) {
	t.Helper()
	if err := report.Err(); err != nil {
		t.Error(err)
		return
	}
	manifest, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	want := containerdpull.Client{Digest: digest, Manifest: digestOf(t, image), Blobs: 1 + len(manifest.Layers), Bytes: blobBytes(t, image)}
	for i, got := range report.Clients {
		got.Start, got.Seconds = 0, 0
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("client %d: -want +got\n%s", i, diff)
		}
	}
}

// blobBytes returns the bytes of config and layers.
func blobBytes(t *testing.T, image v1.Image) int64 {
	t.Helper()
	manifest, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	bytes := manifest.Config.Size
	for _, layer := range manifest.Layers {
		bytes += layer.Size
	}
	return bytes
}

// toCache applies a fault to the requests of the cache, and not to the requests of clients to the upstream.
func toCache(f fault) fault {
	return func(w http.ResponseWriter, r *http.Request) bool { return fromCache(r.UserAgent()) && f(w, r) }
}

func fromCache(userAgent string) bool { return strings.HasPrefix(userAgent, "registry-cache/") }

// direct returns "METHOD kind reference" of the requests that clients sent to the upstream.
func (u *origin) direct() []string {
	var got []string
	for _, q := range u.Requests() {
		if !fromCache(q.UserAgent) {
			got = append(got, strings.Join([]string{q.Method, string(q.Kind), q.Reference}, " "))
		}
	}
	return got
}

func status(code int) fault {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(code)
		return true
	}
}

// newImage returns an image of the media types with layers enough for more than one round of downloads.
func newImage(t *testing.T, oci bool, seed uint64, architecture string) v1.Image {
	t.Helper()
	image, err := images.Generate(images.Spec{
		Seed: seed, LayerSizes: []int64{100_000, 50_000, 25_000, 12_500}, Architecture: architecture,
	})
	if err != nil || !oci {
		if err != nil {
			t.Fatal(err)
		}
		return image
	}
	all, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	converted := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, layer := range all {
		if converted, err = mutate.Append(converted, mutate.Addendum{Layer: layer, MediaType: types.OCILayer}); err != nil {
			t.Fatal(err)
		}
	}
	return converted
}

func testMediaTypes(t *testing.T, n containerd) {
	u := newOrigin(t, upstream.Options{TokenHosts: []string{"docker.io"}})
	c := start(t, u.config(t), cacheserver.Options{})
	hosts := u.hosts(t, c.url())
	seed := uint64(0)
	for _, mediaType := range []types.MediaType{
		types.DockerManifestSchema2, types.OCIManifestSchema1, types.DockerManifestList, types.OCIImageIndex,
	} {
		for _, by := range []string{"tag", "digest"} {
			seed++ // content of an earlier pull must not be used
			oci := mediaType == types.OCIManifestSchema1 || mediaType == types.OCIImageIndex
			image := newImage(t, oci, seed, "amd64")
			var artifact images.Artifact = image
			if mediaType.IsIndex() {
				index := mutate.IndexMediaType(empty.Index, mediaType)
				for _, architecture := range []string{"arm64", "amd64"} {
					index = mutate.AppendManifests(index, mutate.IndexAddendum{
						Add:        newImage(t, oci, seed, architecture),
						Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: architecture}},
					})
				}
				artifact = index
			}
			if got, err := artifact.MediaType(); got != mediaType || err != nil {
				t.Fatalf("media type %s, %v, want %s", got, err, mediaType)
			}
			digest, err := artifact.Digest()
			if err != nil {
				t.Fatal(err)
			}
			tag := "v" + itoa(int(seed))
			if err := u.Push(t.Context(), reference(":"+tag), artifact); err != nil {
				t.Fatal(err)
			}
			identifier, head := ":"+tag, []string{"HEAD manifest " + tag}
			if by == "digest" {
				identifier, head = "@"+digest.String(), nil
			}
			for _, warm := range []bool{false, true} {
				report := n.pull(t, containerdpull.Options{Reference: reference(identifier), Hosts: hosts})
				wantPulled(t, report, digest.String(), image)
				if direct := u.direct(); len(direct) > 0 {
					t.Errorf("%s by %s, warm %t: past the cache: %v", mediaType, by, warm, direct)
				}
				if requests := u.requests(); warm {
					if diff := cmp.Diff(head, requests); diff != "" {
						t.Errorf("%s by %s, warm: -want +got\n%s", mediaType, by, diff)
					}
				}
			}
		}
	}
}

func testCacheWithTLS(t *testing.T, n containerd) {
	u := newOrigin(t, upstream.Options{})
	image := u.push(t, tag, 1)
	cfg := u.config(t)
	dir := t.TempDir()
	cfg.Listen.TLS.CertFile, cfg.Listen.TLS.KeyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	ca := newCA(t)
	issue(t, ca, dir, time.Now())
	caFile := filepath.Join(dir, "ca.crt")
	if err := os.WriteFile(caFile, ca.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	c := start(t, cfg, cacheserver.Options{})
	url := "https://" + c.Address()
	hosts := u.hosts(t, url, fmt.Sprintf("  ca = %q", caFile))
	wantPulled(t, n.pull(t, containerdpull.Options{Reference: reference(":" + tag), Hosts: hosts}), digestOf(t, image), image)
	if direct := u.direct(); len(direct) > 0 {
		t.Errorf("past the cache: %v", direct)
	}
	// A cache that is not trusted costs a pull nothing.
	wantPulled(t, n.pull(t, containerdpull.Options{Reference: reference(":" + tag), Hosts: u.hosts(t, url)}), digestOf(t, image), image)
	if len(u.direct()) == 0 {
		t.Error("nothing went past a cache that is not trusted")
	}
}

func testUpstreamBreaksOff(t *testing.T, n containerd) {
	u := newOrigin(t, upstream.Options{})
	image := u.push(t, tag, 1)
	c := start(t, u.config(t), cacheserver.Options{})
	u.inject(onLayers(t, image, func(w http.ResponseWriter, r *http.Request, content []byte) bool {
		if r.Header.Get("Range") != "" {
			return false
		}
		sendHalf(w, content)
		return true
	}))
	wantPulled(t, n.pull(t, containerdpull.Options{Reference: reference(":" + tag), Hosts: u.hosts(t, c.url())}), digestOf(t, image), image)
	if direct := u.direct(); len(direct) > 0 {
		t.Errorf("past the cache: %v", direct)
	}
	// Half of each layer came before it broke off.
	resumed := int64(0)
	for _, q := range u.Requests() {
		if q.Range != "" {
			resumed += q.Bytes
		}
	}
	want := int64(0)
	for _, content := range layersByPath(t, image) {
		want += int64(len(content) - len(content)/2)
	}
	if resumed != want {
		t.Errorf("%d bytes were resumed, want %d", resumed, want)
	}
}

// layersByPath returns the content of the image's layers by the path of their requests.
func layersByPath(t *testing.T, image v1.Image) map[string][]byte {
	t.Helper()
	byPath := map[string][]byte{}
	digests, contents := layers(t, image)
	for i, d := range digests {
		byPath["/v2/"+repository+"/blobs/"+d] = contents[i]
	}
	return byPath
}

// onLayers applies a fault to the layer requests of the cache.
func onLayers(t *testing.T, image v1.Image, f func(w http.ResponseWriter, r *http.Request, content []byte) bool) fault {
	t.Helper()
	contents := layersByPath(t, image)
	return toCache(func(w http.ResponseWriter, r *http.Request) bool {
		content, ok := contents[r.URL.Path]
		return ok && r.Method == http.MethodGet && f(w, r, content)
	})
}

// sendHalf sends the first half of the content, with the length of all of it.
func sendHalf(w http.ResponseWriter, content []byte) {
	w.Header().Set("Content-Length", itoa(len(content)))
	w.Write(content[:len(content)/2])
	http.NewResponseController(w).Flush()
}

// testUpstreamGoesSilent has an upstream that the cache cannot read to the end of a layer from, again and again.
func testUpstreamGoesSilent(t *testing.T, n containerd) {
	u := newOrigin(t, upstream.Options{})
	image := u.push(t, tag, 1)
	u.headerTimeout = 300 * time.Millisecond
	c := start(t, u.config(t), cacheserver.Options{IdleTimeout: 300 * time.Millisecond})
	u.inject(onLayers(t, image, func(w http.ResponseWriter, r *http.Request, content []byte) bool {
		if r.Header.Get("Range") == "" {
			sendHalf(w, content)
		}
		hang(r)
		return true
	}))
	wantPulled(t, n.pull(t, containerdpull.Options{Reference: reference(":" + tag), Hosts: u.hosts(t, c.url())}), digestOf(t, image), image)
	c.settle(t)
	if found := committed(t, c.root); len(found) > 2*2+1 {
		t.Errorf("stored more than manifest and config: %v", found)
	}
}

func testUpstreamFails(t *testing.T, n containerd) {
	for _, code := range []int{http.StatusInternalServerError, http.StatusServiceUnavailable, http.StatusForbidden} {
		u := newOrigin(t, upstream.Options{})
		image := u.push(t, tag, 1)
		c := start(t, u.config(t), cacheserver.Options{})
		hosts := u.hosts(t, c.url())
		// First only blobs fail, then everything does.
		for _, f := range []fault{onBlobs(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }), status(code)} {
			u.inject(toCache(f))
			for _, identifier := range []string{":" + tag, "@" + digestOf(t, image)} {
				wantPulled(t, n.pull(t, containerdpull.Options{Reference: reference(identifier), Hosts: hosts}), digestOf(t, image), image)
			}
		}
	}
}

func testUpstreamLimitsTheRate(t *testing.T, n containerd) {
	u := newOrigin(t, upstream.Options{})
	image, other := u.push(t, tag, 1), u.push(t, "other", 2)
	c := start(t, u.config(t), cacheserver.Options{})
	hosts := u.hosts(t, c.url())
	wantPulled(t, n.pull(t, containerdpull.Options{Reference: reference(":" + tag), Hosts: hosts}), digestOf(t, image), image)
	var limited atomic.Int64
	u.inject(toCache(func(w http.ResponseWriter, _ *http.Request) bool {
		limited.Add(1)
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	}))
	wantPulled(t, n.pull(t, containerdpull.Options{Reference: reference(":" + tag), Hosts: hosts}), digestOf(t, image), image)
	if direct := u.direct(); len(direct) > 0 || limited.Load() != 1 {
		t.Errorf("of the warm image went past the cache: %v; the upstream was asked %d times", direct, limited.Load())
	}
	wantPulled(t, n.pull(t, containerdpull.Options{Reference: reference(":other"), Hosts: hosts}), digestOf(t, other), other)
	if direct := u.direct(); len(direct) == 0 {
		t.Error("of the cold image nothing went past the cache")
	}
}

func testUpstreamSendsWrongBytes(t *testing.T, n containerd) {
	u := newOrigin(t, upstream.Options{})
	image, other := u.push(t, tag, 1), u.push(t, "other", 2)
	c := start(t, u.config(t), cacheserver.Options{})
	hosts := u.hosts(t, c.url())
	raw, err := image.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	send := func(w http.ResponseWriter, content []byte) {
		wrong := bytes.Clone(content)
		wrong[len(wrong)/2] ^= 1
		w.Header().Set("Content-Length", itoa(len(wrong)))
		w.Header().Set("Content-Type", string(types.DockerManifestSchema2))
		w.Write(wrong)
	}
	// A manifest is read before it is passed on, so that the client does not notice.
	u.inject(toCache(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		send(w, raw)
		return true
	}))
	wantPulled(t, n.pull(t, containerdpull.Options{Reference: reference(":" + tag), Hosts: hosts}), digestOf(t, image), image)

	u.inject(onLayers(t, other, func(w http.ResponseWriter, _ *http.Request, content []byte) bool {
		send(w, content)
		return true
	}))
	digests, _ := layers(t, other)
	for _, discard := range []bool{false, true} {
		report := n.pull(t, containerdpull.Options{Reference: reference(":other"), Hosts: hosts, Discard: discard})
		// A client with a part of the content detects the wrong digest. A later client received an error, and used the upstream.
		if report.Err() == nil {
			wantPulled(t, report, digestOf(t, other), other)
		}
		c.settle(t)
		kept := strings.Join(committed(t, c.root), "\n")
		for _, d := range digests {
			if strings.Contains(kept, strings.TrimPrefix(d, "sha256:")) {
				t.Errorf("discard %t: the cache keeps %s", discard, d)
			}
		}
	}
	u.inject(nil)
	u.ResetRequests()
	wantPulled(t, n.pull(t, containerdpull.Options{Reference: reference(":other"), Hosts: hosts}), digestOf(t, other), other)
	if direct := u.direct(); len(direct) > 0 {
		t.Errorf("past the cache: %v", direct)
	}
}

func testCacheIsGone(t *testing.T, n containerd) {
	u := newOrigin(t, upstream.Options{})
	image := u.push(t, tag, 1)
	c := start(t, u.config(t), cacheserver.Options{})
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	for _, identifier := range []string{":" + tag, "@" + digestOf(t, image)} {
		wantPulled(t, n.pull(t, containerdpull.Options{Reference: reference(identifier), Hosts: u.hosts(t, c.url())}), digestOf(t, image), image)
	}
}

// testCacheIsKilled kills the cache while the client is in the middle of a layer.
func testCacheIsKilled(t *testing.T, n containerd) {
	u := newOrigin(t, upstream.Options{})
	// Containerd writes 1 MiB at a time, so that of a smaller layer nothing could be seen before it is complete.
	image, err := images.Generate(images.Spec{Seed: 1, LayerSizes: []int64{4 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Push(t.Context(), reference(":"+tag), image); err != nil {
		t.Fatal(err)
	}
	u.inject(onLayers(t, image, func(w http.ResponseWriter, r *http.Request, content []byte) bool {
		sendHalf(w, content)
		hang(r)
		return true
	}))
	process := launch(t, writeConfig(t, u.config(t)))
	process.listening(t)
	address := process.address
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	killed := make(chan error, 1)
	go func() { killed <- errors.Join(waitForIngest(ctx, dir), process.Process.Kill()) }()
	report := n.pull(t, containerdpull.Options{Reference: reference(":" + tag), Hosts: u.hosts(t, "http://"+address), Dir: dir})
	cancel()
	if err := <-killed; err != nil {
		t.Fatalf("killing the cache in the middle of a layer: %v", err)
	}
	process.Wait() // the error is that of a killed process
	wantPulled(t, report, digestOf(t, image), image)
	resumed := slices.ContainsFunc(u.Requests(), func(q upstream.Request) bool { return q.Range != "" && !fromCache(q.UserAgent) })
	if !resumed {
		t.Errorf("no layer was resumed at the upstream: %v", u.direct())
	}
}

// waitForIngest waits until content stores of a command, in its temporary directory, hold 1 MiB of something that is
// not complete.
func waitForIngest(ctx context.Context, dir string) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		found, err := filepath.Glob(filepath.Join(dir, "*", "*", "ingest", "*", "data"))
		if err != nil {
			return err
		}
		for _, file := range found {
			// One that is gone is complete.
			if info, err := os.Stat(file); err == nil && info.Size() >= 1<<20 {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Clients with a new content store each: the first one receives the corrupt layer and fails, the second one does not.
func testFlippedBit(t *testing.T, n containerd) { flippedBit(t, n, 0) }

// A client that reads in parts closes most of its responses early, so it receives none of them completely.
func testFlippedBitInChunks(t *testing.T, n containerd) { flippedBit(t, n, 1<<20) }

func flippedBit(t *testing.T, n containerd, chunkSize int) {
	u := newOrigin(t, upstream.Options{})
	// More than the buffers of a connection take from a response that the client does not read.
	image, err := random.Image(24<<20, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Push(t.Context(), reference(":"+tag), image); err != nil {
		t.Fatal(err)
	}
	c := start(t, u.config(t), cacheserver.Options{})
	options := containerdpull.Options{Reference: reference(":" + tag), Hosts: u.hosts(t, c.url()), ChunkSize: chunkSize}
	wantPulled(t, n.pull(t, options), digestOf(t, image), image)
	c.settle(t)
	digests, _ := layers(t, image)
	c.flipBit(t, digests[0])
	if err := n.pull(t, options).Err(); err == nil || !strings.Contains(err.Error(), digests[0]) {
		t.Errorf("the bit was not flipped: %v", err)
	}
	wantPulled(t, n.pull(t, options), digestOf(t, image), image)
}

// Content that the cache cannot store comes from the upstream.
func testOtherAlgorithm(t *testing.T, n containerd) {
	u := newOrigin(t, upstream.Options{})
	image := u.push(t, tag, 1)
	raw, err := image.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	digest := "sha512:" + fmt.Sprintf("%x", sha512.Sum512(raw))
	c := start(t, u.config(t), cacheserver.Options{})
	u.inject(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, digest) {
			return false
		}
		w.Header().Set("Content-Type", string(types.DockerManifestSchema2))
		w.Header().Set("Docker-Content-Digest", digest)
		w.Header().Set("Content-Length", itoa(len(raw)))
		if r.Method == http.MethodGet {
			w.Write(raw)
		}
		return true
	})
	report := n.pull(t, containerdpull.Options{Reference: reference("@" + digest), Hosts: u.hosts(t, c.url())})
	if err := report.Err(); err != nil || report.Clients[0].Bytes != blobBytes(t, image) {
		t.Errorf("%+v, %v", report, err)
	}
}

// With concurrent_layer_fetch_buffer, containerd 2.x requests a layer in parts: from an offset to the end, and closes each
// connection after its part.
func testParallelChunks(t *testing.T, n containerd) {
	const clients = 5
	u := newOrigin(t, upstream.Options{})
	image, err := random.Image(4<<20, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Push(t.Context(), reference(":"+tag), image); err != nil {
		t.Fatal(err)
	}
	c := start(t, u.config(t), cacheserver.Options{})
	if err := u.Shape(upstream.Shaping{BytesPerSecond: 2 << 20}); err != nil {
		t.Fatal(err)
	}
	report := n.pull(t, containerdpull.Options{Reference: reference(":" + tag), Hosts: u.hosts(t, c.url(), patient), Clients: clients, ChunkSize: 512 << 10})
	wantPulled(t, report, digestOf(t, image), image)
	if direct := u.direct(); len(direct) > 0 {
		t.Errorf("past the cache: %v", direct)
	}
	if summaries := upstream.Summarise(u.Requests()); len(summaries) != 1 || summaries[0].BlobBytes != blobBytes(t, image) {
		t.Errorf("the upstream sent %+v, want %d bytes", summaries, blobBytes(t, image))
	}
	if ranges := strings.Count(c.log.String(), `"status":206`); ranges < clients {
		t.Errorf("%d requests for a part of the layer", ranges)
	}
}

func testHerd(t *testing.T, n containerd) {
	const clients = 30
	u := newOrigin(t, upstream.Options{})
	image := u.push(t, tag, 1)
	cfg := u.config(t)
	cfg.Tags.RevalidateAfter = config.Duration(time.Hour)
	c := start(t, cfg, cacheserver.Options{})
	hosts := u.hosts(t, c.url(), patient)
	// Slow enough that all of them are there while it comes.
	if err := u.Shape(upstream.Shaping{Latency: 20 * time.Millisecond, BytesPerSecond: 4 << 20}); err != nil {
		t.Fatal(err)
	}
	report := n.pull(t, containerdpull.Options{Reference: reference(":" + tag), Hosts: hosts, Clients: clients})
	if len(report.Clients) != clients {
		t.Errorf("%d clients, want %d", len(report.Clients), clients)
	}
	wantPulled(t, report, digestOf(t, image), image)
	if direct := u.direct(); len(direct) > 0 {
		t.Errorf("past the cache: %v", direct)
	}
	digests, _ := layers(t, image)
	configName, err := image.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"HEAD manifest " + tag, "GET manifest " + digestOf(t, image), "GET blob " + configName.String(), "GET blob " + digests[0], "GET blob " + digests[1]}
	summaries := upstream.Summarise(u.Requests())
	got := u.requests()
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if len(summaries) != 1 || summaries[0].BlobBytes != blobBytes(t, image) {
		t.Errorf("the upstream sent %+v, want %d bytes", summaries, blobBytes(t, image))
	}

	const stagger = 300 * time.Millisecond
	warm := n.pull(t, containerdpull.Options{Reference: reference(":" + tag), Hosts: hosts, Clients: clients, Stagger: stagger, Discard: true})
	wantPulled(t, warm, digestOf(t, image), image)
	if got := u.requests(); len(got) > 0 {
		t.Errorf("the warm herd reached the upstream: %v", got)
	}
	if last := warm.Clients[clients-1].Start; last < stagger.Seconds()*(clients-1)/clients {
		t.Errorf("the last client started after %v s", last)
	}
}

// testFullVolume has a volume of 1 MiB: the layers do not fit, manifests do.
func testFullVolume(t *testing.T, n containerd) {
	u := newOrigin(t, upstream.Options{})
	image := u.push(t, tag, 1)
	cfg := u.config(t)
	if err := limit(t, cfg.Storage.Root, "1m"); err != nil {
		t.Skipf("a volume with a limit can only be mounted by root: %v", err)
	}
	c := start(t, cfg, cacheserver.Options{})
	for range 3 {
		report := n.pull(t, containerdpull.Options{Reference: reference(":" + tag), Hosts: u.hosts(t, c.url()), Clients: 3})
		wantPulled(t, report, digestOf(t, image), image)
	}
	if got := c.metric(t, "registry_cache_storage_errors_total"); got == 0 {
		t.Error("the volume was never full, so this shows nothing")
	}
	if direct := u.direct(); len(direct) > 0 {
		t.Errorf("past the cache: %v", direct)
	}
}
