// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"bytes"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// metrics returns the metrics of this project: samples by name and labels, and the types by name.
func (c *cache) metrics(t *testing.T) (samples map[string]float64, types map[string]string) {
	t.Helper()
	samples, types = map[string]float64{}, map[string]string{}
	for line := range strings.Lines(string(c.debug(t, "/metrics").body)) {
		if declared, ok := strings.CutPrefix(line, "# TYPE registry_cache_"); ok {
			name, kind, _ := strings.Cut(strings.TrimSpace(declared), " ")
			types["registry_cache_"+name] = kind
		}
		if !strings.HasPrefix(line, "registry_cache_") {
			continue
		}
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		number, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		samples[name] = number
	}
	return samples, types
}

// putOld stores content as if it was used for the last time that long ago. Without a repository nothing refers to it.
func putOld(t *testing.T, root, repository, content string, age time.Duration) {
	t.Helper()
	hex := digest.FromString(content).Encoded()
	write := map[string]string{"blobs/sha256/" + hex[:2] + "/" + hex + "/data": content}
	if repository != "" {
		write["repositories/"+repository+"/_layers/sha256/"+hex+"/link"] = "sha256:" + hex
	}
	for path, content := range write {
		path = filepath.Join(root, "docker/registry/v2", path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMetrics causes a change of each metric, and reads it. A metric that it does not read fails it, and so does
// one that docs/operations.md does not explain.
func TestMetrics(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	digests, contents := layers(t, u.push(t, tag, 1))
	cfg := u.config(t)
	cfg.Storage.HighWatermark, cfg.Storage.LowWatermark = 100, 99 // however full this machine is
	const expired, unreferenced, old = "expired", "unreferenced!", "old"
	putOld(t, cfg.Storage.Root, repository, expired, 8*24*time.Hour)
	putOld(t, cfg.Storage.Root, "", unreferenced, 0)
	putOld(t, cfg.Storage.Root, repository, old, time.Hour)
	const connections = 8
	c := start(t, cfg, cacheserver.Options{MaxConnections: connections, MaxTransfers: 1, QueueTimeout: time.Second})

	read := map[string]bool{}
	expect := func(step string, want map[string]float64) {
		t.Helper()
		got, _ := c.metrics(t)
		for _, name := range slices.Sorted(maps.Keys(want)) {
			family, _, _ := strings.Cut(name, "{")
			read[family] = true
			if value, ok := got[name]; !ok || value != want[name] {
				t.Errorf("%s: %s is %v (there: %t), want %v", step, name, value, ok, want[name])
			}
		}
	}
	about := func(name string, least, most float64) {
		t.Helper()
		got, _ := c.metrics(t)
		family, _, _ := strings.Cut(name, "{")
		read[strings.TrimSuffix(strings.TrimSuffix(family, "_sum"), "_count")] = true
		if value, ok := got[name]; !ok || value < least || value > most {
			t.Errorf("%s is %v (there: %t), want %v to %v", name, value, ok, least, most)
		}
	}

	eventually(t, "the volume is cleared", func() bool {
		got, _ := c.metrics(t)
		return got[`registry_cache_evictions_total{reason="expired"}`]+got[`registry_cache_evictions_total{reason="unreferenced"}`] == 2
	})
	expect("start", map[string]float64{
		`registry_cache_evictions_total{reason="expired"}`:                 1,
		`registry_cache_evictions_total{reason="unreferenced"}`:            1,
		`registry_cache_evictions_total{reason="least-recently-used"}`:     0, // see TestSmallVolumeNeverFillsUp
		`registry_cache_evicted_bytes_total{reason="expired"}`:             float64(len(expired)),
		`registry_cache_evicted_bytes_total{reason="unreferenced"}`:        float64(len(unreferenced)),
		`registry_cache_evicted_bytes_total{reason="least-recently-used"}`: 0,
		`registry_cache_connections_limit`:                                 connections,
		`registry_cache_client_bytes_total`:                                0,
		`registry_cache_saved_bytes_total`:                                 0,
		`registry_cache_upstream_bytes_total`:                              0,
		`registry_cache_upstream_waiting_requests`:                         0,
		`registry_cache_upstream_unsent_requests_total`:                    0,
		`registry_cache_fetches_in_flight`:                                 0,
		`registry_cache_followers_total`:                                   0,
		`registry_cache_blob_connections_total{reason="needed"}`:           0,
		`registry_cache_blob_connections_total{reason="complete"}`:         0,
		`registry_cache_blob_connections_total{reason="replace"}`:          0,
		`registry_cache_blob_connections_total{reason="speedup"}`:          0,
		`registry_cache_storage_errors_total`:                              0,
		`registry_cache_upstream_latency_seconds_bucket{le="+Inf"}`:        0,
		`registry_cache_volume_state{state="ok"}`:                          1,
		`registry_cache_volume_state{state="full"}`:                        0,
		`registry_cache_volume_state{state="read-only"}`:                   0,
		`registry_cache_volume_state{state="error"}`:                       0,
		`registry_cache_volume_state{state="hung"}`:                        0, // see TestHungVolumeIsDetected
		`registry_cache_volume_problems`:                                   0,
		`registry_cache_volume_failures_total{state="hung"}`:               0,
	})
	about("registry_cache_oldest_object_age_seconds", 3600, 3700)
	about("registry_cache_volume_limit_bytes", 1<<20, 1<<60)
	about("registry_cache_volume_used_bytes", 1, 1<<60)
	about("registry_cache_volume_limit_inodes", 0, 1<<60)
	about("registry_cache_volume_used_inodes", 0, 1<<60)

	// A fetch that is held back half-way, with a follower, and another one that waits for its turn in vain.
	half := make(chan struct{})
	proceed := sync.OnceFunc(func() { close(half) })
	defer proceed()
	u.inject(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, digests[0]) {
			return false
		}
		w.Header().Set("Content-Length", itoa(len(contents[0])))
		w.Write(contents[0][:1000])
		http.NewResponseController(w).Flush()
		<-half
		w.Write(contents[0][1000:])
		return true
	})
	first := c.open(t, "GET", "blobs/"+digests[0])
	defer first.Body.Close()
	second := c.open(t, "GET", "blobs/"+digests[0])
	defer second.Body.Close()
	busy := make(chan int, 1)
	go func() {
		defer close(busy)
		busy <- c.do(t, "GET", "blobs/"+digests[1]).status
	}()
	eventually(t, "a request waits", func() bool {
		got, _ := c.metrics(t)
		return got["registry_cache_upstream_waiting_requests"] == 1
	})
	expect("held back", map[string]float64{
		"registry_cache_fetches_in_flight":                       2, // one of them has not got its turn
		"registry_cache_followers_total":                         1,
		"registry_cache_connections":                             3,
		`registry_cache_blob_connections_total{reason="needed"}`: 2,
	})
	if got := <-busy; got != http.StatusServiceUnavailable {
		t.Errorf("the request that waited: %d", got)
	}
	proceed()
	for _, resp := range []*http.Response{first, second} {
		if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, contents[0]) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	c.settle(t)
	size := float64(len(contents[0]))
	// The recorder counts when an answer is over, which its client may learn before.
	eventually(t, "three answers are counted", func() bool {
		got, _ := c.metrics(t)
		return got[`registry_cache_requests_total{kind="blob",outcome="miss"}`]+got[`registry_cache_requests_total{kind="blob",outcome="error"}`] == 3
	})
	got, _ := c.metrics(t)
	message := got["registry_cache_client_bytes_total"] - 2*size
	if message < 1 || message > 1000 {
		t.Errorf("%v bytes beside the two blobs, want those of an error", message)
	}
	expect("held back, afterwards", map[string]float64{
		`registry_cache_requests_total{kind="blob",outcome="miss"}`:  2,
		`registry_cache_requests_total{kind="blob",outcome="error"}`: 1,
		`registry_cache_upstream_unsent_requests_total`:              1,
		`registry_cache_upstream_requests_total{status="200"}`:       1,
		`registry_cache_upstream_bytes_total`:                        size,
		`registry_cache_saved_bytes_total`:                           size, // the follower's
		`registry_cache_fetches_in_flight`:                           0,
	})

	// A hit, a manifest that comes and is stale then, an upstream that fails, and a volume that cannot be written.
	if got := c.do(t, "GET", "blobs/"+digests[0], "Range", "bytes=0-99"); got.status != http.StatusPartialContent {
		t.Errorf("hit: %d", got.status)
	}
	if got := c.do(t, "GET", "blobs/"+digests[0], "Range", "bytes=99999999-"); got.status != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("range outside of the blob: %d", got.status)
	}
	manifest := c.do(t, "GET", "manifests/"+tag)
	u.inject(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusBadGateway); return true })
	if got := c.do(t, "GET", "manifests/"+tag); got.header.Get("Warning") == "" {
		t.Errorf("stale: %d, %v", got.status, got.header)
	}
	u.inject(func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) })
	c.do(t, "GET", "tags/list")
	u.inject(nil)
	partial := filepath.Join(c.root, "registry-cache/partial")
	if err := os.RemoveAll(partial); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(partial, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := c.do(t, "GET", "blobs/"+digests[1]); got.err != nil || !bytes.Equal(got.body, contents[1]) {
		t.Errorf("passed through: %d, %v", got.status, got.err)
	}
	if err := os.Remove(partial); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all answers are counted", func() bool {
		got, _ := c.metrics(t)
		return got[`registry_cache_requests_total{kind="blob",outcome="pass-through"}`] == 1
	})
	expect("the rest", map[string]float64{
		`registry_cache_requests_total{kind="blob",outcome="hit"}`:          1,
		`registry_cache_requests_total{kind="blob",outcome="pass-through"}`: 1,
		`registry_cache_requests_total{kind="blob",outcome="error"}`:        2,
		`registry_cache_requests_total{kind="manifest",outcome="miss"}`:     1,
		`registry_cache_requests_total{kind="manifest",outcome="stale"}`:    1,
		`registry_cache_requests_total{kind="tags",outcome="error"}`:        1,
		`registry_cache_upstream_requests_total{status="200"}`:              4, // two blobs, HEAD and GET of the manifest
		`registry_cache_upstream_requests_total{status="502"}`:              1,
		`registry_cache_upstream_requests_total{status="none"}`:             1,
		`registry_cache_upstream_latency_seconds_count`:                     6,
		`registry_cache_storage_errors_total`:                               1,
		`registry_cache_upstream_bytes_total`:                               size + float64(len(contents[1])+len(manifest.body)),
		`registry_cache_saved_bytes_total`:                                  size + 100 + float64(len(manifest.body)),
	})
	about("registry_cache_upstream_latency_seconds_sum", 1e-6, 30)

	for range connections + 1 {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", c.Address())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	eventually(t, "connections are refused", func() bool {
		got, _ := c.metrics(t)
		return got["registry_cache_connections_refused_total"] > 0 && got["registry_cache_connections"] == connections
	})
	about("registry_cache_connections_refused_total", 1, connections+1)

	_, types := c.metrics(t)
	manual, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, kind := range types {
		if !read[name] && !read[name+"_bucket"] {
			t.Errorf("%s is not read by this test", name)
		}
		if !bytes.Contains(manual, []byte("| `"+name)) {
			t.Errorf("docs/operations.md does not explain %s", name)
		}
		if strings.HasSuffix(name, "_total") != (kind == "counter") {
			t.Errorf("%s is a %s", name, kind)
		}
	}
	if len(types) == 0 {
		t.Error("there are no metrics")
	}
}
