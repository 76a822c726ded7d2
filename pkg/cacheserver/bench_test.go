// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// What is stored is served over one connection of loopback, the client included. test/bench compares with others.
func BenchmarkWarm(b *testing.B) {
	u := newOrigin(b, upstream.Options{})
	image := u.push(b, tag, 1)
	layers, _ := layers(b, image)
	cfg := u.config(b)
	cfg.Tags.RevalidateAfter = config.Duration(time.Hour)
	c := start(b, cfg, cacheserver.Options{})
	for _, work := range []struct {
		name, method, path string
		size               int64
	}{
		{"manifest", http.MethodGet, "/manifests/" + digestOf(b, image), 0},
		{"tag", http.MethodHead, "/manifests/" + tag, 0},
		{"blob", http.MethodGet, "/blobs/" + layers[0], layerSize},
	} {
		b.Run(work.name, func(b *testing.B) {
			client := &http.Client{Transport: c.transport}
			get := func() {
				req, err := http.NewRequestWithContext(b.Context(), work.method, "http://"+c.Address()+"/v2/"+repository+work.path, nil)
				if err != nil {
					b.Fatal(err)
				}
				resp, err := client.Do(req)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
					b.Fatal(resp.Status, err)
				}
				if err := resp.Body.Close(); err != nil {
					b.Fatal(err)
				}
			}
			get()
			b.SetBytes(work.size)
			b.ReportAllocs()
			for b.Loop() {
				get()
			}
		})
	}
}

// A blob that is not stored comes from an upstream in the same process, over TLS, and goes to one client while it is
// stored.
func BenchmarkCold(b *testing.B) {
	u := newOrigin(b, upstream.Options{})
	cfg := u.config(b)
	c := start(b, cfg, cacheserver.Options{})
	const size = 16 << 20
	digests, _ := u.pushLayers(b, tag, 16, size)
	b.SetBytes(size)
	n := 0
	for b.Loop() {
		if n == len(digests) {
			b.StopTimer()
			// All are stored by now.
			if err := c.stop(); err != nil {
				b.Fatal(err)
			}
			cfg.Storage.Root = b.TempDir()
			c, n = start(b, cfg, cacheserver.Options{}), 0
			b.StartTimer()
		}
		req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://"+c.Address()+"/v2/"+repository+"/blobs/"+digests[n], nil)
		if err != nil {
			b.Fatal(err)
		}
		resp, err := c.transport.RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		if got, err := io.Copy(io.Discard, resp.Body); err != nil || got < size {
			b.Fatalf("%d bytes, %v", got, err)
		}
		if err := resp.Body.Close(); err != nil {
			b.Fatal(err)
		}
		n++
	}
}
