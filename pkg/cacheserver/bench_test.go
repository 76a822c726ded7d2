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
