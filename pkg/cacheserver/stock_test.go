// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// These tests share volumes with the registry of the distribution project, in the version that hack/distribution pins
// and with the configuration that Gardener's extension gives it.

// stock is a running stock registry.
type stock struct {
	address string
	process *exec.Cmd
	log     *lockedBuffer
	ended   chan struct{} // is closed then
	err     error         // of the end
}

func buildStock(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "registry")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", program, "tool")
	build.Dir = filepath.Join("..", "..", "hack", "distribution")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the stock registry: %v\n%s", err, output)
	}
	return program
}

var stockListens = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// startStock runs a stock registry until the end of the test, or until it is stopped or killed.
func startStock(t *testing.T, program, root string, u *origin, ttl time.Duration) *stock {
	t.Helper()
	s := launchStock(t, program, root, u, ttl)
	eventually(t, "the stock registry listens", func() bool {
		if m := stockListens.FindStringSubmatch(s.log.String()); m != nil {
			s.address = m[1]
			return true
		}
		select {
		case <-s.ended:
			t.Fatalf("the stock registry ended: %v", s.err)
		default:
		}
		return false
	})
	return s
}

func launchStock(t *testing.T, program, root string, u *origin, ttl time.Duration) *stock {
	t.Helper()
	file := filepath.Join(t.TempDir(), "stock.yml")
	document := fmt.Sprintf(`version: 0.1
log: {accesslog: {disabled: true}}
storage:
  delete: {enabled: true}
  filesystem: {rootdirectory: %q}
  tag: {concurrencylimit: 5}
http: {addr: "127.0.0.1:0", draintimeout: 5s}
proxy: {remoteurl: %q, ttl: %s}
`, root, u.front.URL, ttl)
	if err := os.WriteFile(file, []byte(document), 0o644); err != nil {
		t.Fatal(err)
	}
	s := &stock{log: &lockedBuffer{}, ended: make(chan struct{})}
	s.process = exec.CommandContext(t.Context(), program, "serve", file)
	s.process.Env = append(os.Environ(), "SSL_CERT_FILE="+u.caFile, "OTEL_TRACES_EXPORTER=none")
	s.process.Stdout, s.process.Stderr = s.log, s.log
	if err := s.process.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		s.err = s.process.Wait()
		close(s.ended)
	}()
	t.Cleanup(func() {
		s.process.Process.Kill() // it may have ended before
		<-s.ended
		if t.Failed() {
			t.Logf("log of the stock registry:\n%s", s.log)
		}
	})
	return s
}

// stop ends it in order, which records the pending deletions.
func (s *stock) stop(t *testing.T) {
	t.Helper()
	if err := s.process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if <-s.ended; s.err != nil {
		t.Errorf("stopping the stock registry: %v", s.err)
	}
}

// served is an answer that a registry must give.
type served struct {
	path string // below /v2/
	body []byte
}

const other = "library/other"

// contentOf returns the content that a repository must serve of an image or index: all by digest, and the manifest of the tag.
func contentOf(t *testing.T, repository, tag string, artifact images.Artifact) (all []served) {
	t.Helper()
	raw, err := artifact.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	d, err := artifact.Digest()
	if err != nil {
		t.Fatal(err)
	}
	all = append(all, served{repository + "/manifests/" + d.String(), raw})
	if tag != "" {
		all = append(all, served{repository + "/manifests/" + tag, raw})
	}
	switch artifact := artifact.(type) {
	case v1.ImageIndex:
		index, err := artifact.IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		for _, manifest := range index.Manifests {
			image, err := artifact.Image(manifest.Digest)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, contentOf(t, repository, "", image)...)
		}
	case v1.Image:
		config, err := artifact.RawConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		name, err := artifact.ConfigName()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, served{repository + "/blobs/" + name.String(), config})
		digests, contents := layers(t, artifact)
		for i, d := range digests {
			all = append(all, served{repository + "/blobs/" + d, contents[i]})
		}
	}
	return all
}

// fillUpstream puts an image into two repositories of the upstream, and an index into one.
func fillUpstream(t *testing.T, u *origin) []served {
	t.Helper()
	image := u.push(t, tag, 1)
	if err := u.Push(t.Context(), "docker.io/"+other+":"+tag, image); err != nil {
		t.Fatal(err)
	}
	index, err := images.Index(
		images.Spec{Seed: 2, LayerSizes: []int64{10_000}, Architecture: "amd64"},
		images.Spec{Seed: 3, LayerSizes: []int64{20_000}, Architecture: "arm64"})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Push(t.Context(), "docker.io/"+repository+":index", index); err != nil {
		t.Fatal(err)
	}
	return slices.Concat(contentOf(t, repository, tag, image), contentOf(t, other, tag, image), contentOf(t, repository, "index", index))
}

// get sends a request to a registry.
func get(t *testing.T, address, path string) response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+address+"/v2/"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	// The stock registry returns OCI media types only to clients that accept them.
	for _, mediaType := range []string{"application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
		"application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json"} {
		req.Header.Add("Accept", mediaType)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return response{resp.StatusCode, resp.Header, body, err}
}

func wantServed(t *testing.T, who, address string, all []served) {
	t.Helper()
	for _, want := range all {
		if got := get(t, address, want.path); got.status != 200 || got.err != nil || !bytes.Equal(got.body, want.body) {
			t.Errorf("%s: %s: %d, %d of %d bytes, %v", who, want.path, got.status, len(got.body), len(want.body), got.err)
		}
	}
}

// cutOff makes the upstream refuse all but the ping, and returns the requests for digests that it got.
func (u *origin) cutOff() (asked func() []string) {
	var mu sync.Mutex
	var digests []string
	u.inject(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v2/" {
			return false
		}
		if strings.Contains(r.URL.Path, "sha256:") {
			mu.Lock()
			digests = append(digests, r.Method+" "+r.URL.Path)
			mu.Unlock()
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(digests)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func (c *cache) indexed(t *testing.T) {
	t.Helper()
	eventually(t, "the volume is indexed", func() bool { return strings.Contains(c.log.String(), "Indexed the volume") })
}

func TestVolumeOfStockIsAdopted(t *testing.T) {
	t.Parallel()
	program := buildStock(t)
	u := newOrigin(t, upstream.Options{})
	all := fillUpstream(t, u)
	cfg := u.config(t)
	s := startStock(t, program, cfg.Storage.Root, u, time.Hour)
	wantServed(t, "stock, cold", s.address, all)
	s.stop(t)

	asked := u.cutOff()
	c := start(t, cfg, cacheserver.Options{})
	c.indexed(t)
	wantServed(t, "adopted", c.Address(), all)
	for _, want := range all {
		if got := get(t, c.Address(), want.path); !strings.Contains(want.path, "sha256:") && got.header.Get("Warning") == "" {
			t.Errorf("%s: not said to be stale", want.path)
		}
	}
	if got := asked(); len(got) > 0 {
		t.Errorf("the upstream was asked for %v", got)
	}
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	if complaints := inconsistencies(t, cfg.Storage.Root); len(complaints) > 0 {
		t.Errorf("the volume is not as it should be:\n%s", strings.Join(complaints, "\n"))
	}
}

// TestLeaksOfStock adds to a volume the files that stock registries leave behind, also when they are killed.
func TestLeaksOfStock(t *testing.T) {
	t.Parallel()
	program := buildStock(t)
	for _, ttl := range []time.Duration{time.Hour, 0} {
		for state, content := range map[string]string{"empty": "", "cut": `{"library/sample@sha256:`} {
			t.Run(fmt.Sprintf("ttl=%v,state=%s", ttl, state), func(t *testing.T) {
				t.Parallel()
				testLeaksOfStock(t, program, ttl, content)
			})
		}
	}
}

func testLeaksOfStock(t *testing.T, program string, ttl time.Duration, state string) {
	u := newOrigin(t, upstream.Options{})
	good := fillUpstream(t, u)
	leaky := u.push(t, "leaky", 9)
	leakyLayers, contents := layers(t, leaky)
	cfg := u.config(t)
	cfg.GarbageCollection.TTL = config.Duration(ttl)
	root := cfg.Storage.Root
	s := startStock(t, program, root, u, time.Hour)
	wantServed(t, "stock, cold", s.address, append(good, contentOf(t, repository, "leaky", leaky)[:3]...))
	// Killed in the middle of a fetch.
	u.inject(onBlobs(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", itoa(len(contents[1])))
		w.Write(contents[1][:len(contents[1])/2])
		http.NewResponseController(w).Flush()
		hang(r)
	}))
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+s.address+"/v2/"+repository+"/blobs/"+leakyLayers[1], nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := s.process.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-s.ended
	u.inject(nil)
	if !strings.Contains(strings.Join(files(t, root), "\n"), "/_uploads/") {
		t.Fatalf("the killed stock registry left no upload:\n%s", s.log)
	}
	// The tag and the revision of the image without its manifest, and its config without the link.
	registry := filepath.Join(root, "docker/registry/v2")
	data := func(d string) string {
		hex := strings.TrimPrefix(d, "sha256:")
		return filepath.Join(registry, "blobs/sha256", hex[:2], hex, "data")
	}
	remove(t, data(digestOf(t, leaky)))
	name, err := leaky.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	remove(t, filepath.Join(registry, "repositories", repository, "_layers/sha256", name.Hex, "link"))
	// Temporary files of writes that did not end.
	put(t, data(leakyLayers[0])+".9d0c3a35.tmp", "half a manifest")
	put(t, filepath.Join(registry, "repositories", other, "_manifests/revisions/sha256", name.Hex, "link.9d0c3a35.tmp"), "")
	put(t, filepath.Join(root, "scheduler-state.json.9d0c3a35.tmp"), "{")
	put(t, filepath.Join(root, "scheduler-state.json"), state)

	before := files(t, root)
	complaints := inconsistencies(t, root)
	if len(complaints) < 5 {
		t.Errorf("there should be more to clean: %v", complaints)
	}
	asked := u.cutOff()
	c := start(t, cfg, cacheserver.Options{})
	c.indexed(t)
	if ttl > 0 {
		eventually(t, "the garbage is gone", func() bool { return len(inconsistencies(t, root)) == 0 })
	}
	wantServed(t, "adopted", c.Address(), good)
	if got := asked(); len(got) > 0 {
		t.Errorf("the upstream was asked for %v", got)
	}
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	after := files(t, root)
	if ttl == 0 {
		before = append(before, "registry-cache/last-use")
		slices.Sort(before)
		slices.Sort(after)
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("files, although nothing may be deleted: -before +after\n%s", diff)
		}
		return
	}
	if len(after) >= len(before) {
		t.Errorf("%d files before, %d after", len(before), len(after))
	}
	// Which a stock registry can take back.
	back := startStock(t, program, root, u, time.Hour)
	wantServed(t, "handed back", back.address, good)
}

// The reason for all this: should it ever not hold, the file need no longer be looked after.
func TestStockDoesNotStartWithABrokenState(t *testing.T) {
	t.Parallel()
	program := buildStock(t)
	u := newOrigin(t, upstream.Options{})
	root := t.TempDir()
	put(t, filepath.Join(root, "scheduler-state.json"), "")
	s := launchStock(t, program, root, u, time.Hour)
	if <-s.ended; s.err == nil || !strings.Contains(s.log.String(), "unexpected end of JSON input") {
		t.Errorf("%v\n%s", s.err, s.log)
	}
}

func TestStockTakesOver(t *testing.T) {
	t.Parallel()
	program := buildStock(t)
	u := newOrigin(t, upstream.Options{})
	all := fillUpstream(t, u)
	cfg := u.config(t)
	root := cfg.Storage.Root
	put(t, filepath.Join(root, "scheduler-state.json"), "")
	const ttl = time.Hour
	cfg.GarbageCollection.TTL = config.Duration(ttl)
	c := start(t, cfg, cacheserver.Options{})
	wantServed(t, "cold", c.Address(), all)
	c.settle(t)
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}

	// One layer was not used for nearly the TTL.
	old := ""
	for _, one := range all {
		if d, isBlob := strings.CutPrefix(one.path, repository+"/blobs/"); isBlob && len(one.body) > layerSize {
			old = d
		}
	}
	record := filepath.Join(root, "registry-cache/last-use")
	content, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(old) + ` .*$`)
	if !line.Match(content) {
		t.Fatalf("%s is not in\n%s", old, content)
	}
	soon := time.Now().Add(10 * time.Second).UTC().Truncate(time.Second)
	content = line.ReplaceAll(content, []byte(old+" "+soon.Add(-ttl).Format(time.RFC3339)))
	if err := os.WriteFile(record, content, 0o644); err != nil {
		t.Fatal(err)
	}
	c = start(t, cfg, cacheserver.Options{})
	c.indexed(t)
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	if complaints := inconsistencies(t, root); len(complaints) > 0 {
		t.Errorf("the volume is not as it should be:\n%s", strings.Join(complaints, "\n"))
	}
	state, err := os.ReadFile(filepath.Join(root, "scheduler-state.json"))
	if err != nil {
		t.Fatal(err)
	}
	var entries map[string]struct{ ExpiryData time.Time }
	if err := json.Unmarshal(state, &entries); err != nil {
		t.Fatal(err)
	}
	if got := entries[repository+"@"+old].ExpiryData; !got.Equal(soon) {
		t.Errorf("%s expires %v, want %v", old, got, soon)
	}
	for _, one := range all {
		key := strings.NewReplacer("/manifests/", "@", "/blobs/", "@").Replace(one.path)
		if _, listed := entries[key]; !listed && strings.Contains(key, "@sha256:") {
			t.Errorf("%s would never be deleted", key)
		}
	}

	asked := u.cutOff()
	s := startStock(t, program, root, u, ttl)
	if time.Now().Before(soon.Add(-time.Second)) { // or the machine is too busy to see all of it
		wantServed(t, "stock", s.address, all)
		if got := asked(); len(got) > 0 {
			t.Errorf("the upstream was asked for %v", got)
		}
	}
	hex := strings.TrimPrefix(old, "sha256:")
	eventually(t, "the stock registry deletes what has expired", func() bool {
		_, err := os.Stat(filepath.Join(root, "docker/registry/v2/blobs/sha256", hex[:2], hex))
		return errors.Is(err, os.ErrNotExist)
	})
	all = slices.DeleteFunc(all, func(one served) bool { return strings.HasSuffix(one.path, old) })
	wantServed(t, "stock, after the expiry of one blob", s.address, all)
}
