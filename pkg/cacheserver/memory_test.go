// SPDX-License-Identifier: Apache-2.0

// The race detector needs memory of its own, so "make test" runs these tests without it.
//go:build !race

package cacheserver_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/oci"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// C1: the process of the server needs little memory for concurrent large manifests, with the garbage collector as in
// production. Package manifests tests the same for the heap.
func TestMemoryForLargeManifests(t *testing.T) {
	t.Parallel()
	const parallel, limit = 24, 150 << 20
	manifests := map[string][]byte{}
	for i := range parallel {
		prefix, suffix := `{"schemaVersion":2,"config":{"digest":"`+digest.FromString("config").String()+`"},"layers":[`, `{}]}`
		content := []byte(prefix + strings.Repeat("{},", (oci.MaxManifestSize-len(prefix)-len(suffix))/3-i) + suffix)
		manifests[digest.FromBytes(content).String()] = content
	}
	for _, announced := range []bool{true, false} {
		t.Run(fmt.Sprintf("length announced %t", announced), func(t *testing.T) {
			u := newOrigin(t, upstream.Options{})
			var sent atomic.Int64
			u.inject(func(w http.ResponseWriter, r *http.Request) bool {
				content, ok := manifests[path.Base(r.URL.Path)]
				if !ok {
					return false
				}
				w.Header().Set("Content-Type", oci.MediaTypeManifest)
				w.Header().Set("Docker-Content-Digest", path.Base(r.URL.Path))
				if announced {
					w.Header().Set("Content-Length", itoa(len(content)))
				}
				_, _ = w.Write(content)
				sent.Add(1)
				return true
			})
			config := writeConfig(t, u.config(t))
			// Each process has its own garbage. The second one reads the volume.
			sources := []string{"the upstream"}
			if announced {
				sources = append(sources, "the volume")
			}
			for _, source := range sources {
				before := sent.Load()
				p := launch(t, config)
				p.listening(t)
				started := peakMemory(t, p)
				pullSlowly(t, p, manifests)
				peak := peakMemory(t, p)
				p.kill(t)
				t.Logf("the process needs %d MiB after its start, and %d MiB for %d manifests of %s", started>>20, peak>>20, parallel, source)
				if peak > limit {
					t.Errorf("%d manifests of %s need %d MiB, at most %d MiB are allowed", parallel, source, peak>>20, limit>>20)
				}
				if got := sent.Load() - before; (got == 0) != (source == "the volume") {
					t.Errorf("manifests of %s: the upstream sent %d", source, got)
				}
			}
		})
	}
}

// pullSlowly requests all manifests by digest, and reads the first one when the headers of all have arrived.
func pullSlowly(t *testing.T, p *process, manifests map[string][]byte) {
	t.Helper()
	var transport http.Transport
	defer transport.CloseIdleConnections()
	var received, ended sync.WaitGroup
	received.Add(len(manifests))
	for name, content := range manifests {
		ended.Go(func() {
			resp, err := getManifest(t, &transport, "http://"+p.address+"/v2/"+repository+"/manifests/"+name)
			received.Done()
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			received.Wait()
			got, err := io.ReadAll(resp.Body)
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("status %d, %d bytes, %v", resp.StatusCode, len(got), err)
			}
		})
	}
	ended.Wait()
}

// getManifest sends a request, and repeats it after 504: on a busy machine, an answer can take longer than its limit.
func getManifest(t *testing.T, transport *http.Transport, url string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		resp, err := transport.RoundTrip(req)
		if err != nil || resp.StatusCode != http.StatusGatewayTimeout || attempt == 5 {
			return resp, err
		}
		if err := resp.Body.Close(); err != nil {
			return nil, err
		}
	}
}

// highWaterMark matches the peak of the resident memory in /proc/<pid>/status.
var highWaterMark = regexp.MustCompile(`(?m)^VmHWM:\s+(\d+) kB$`)

// peakMemory returns the largest resident memory that the process has had, in bytes.
func peakMemory(t *testing.T, p *process) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	match := highWaterMark.FindSubmatch(status)
	if match == nil {
		t.Fatalf("no peak in %s", status)
	}
	kib, err := strconv.ParseInt(string(match[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}
