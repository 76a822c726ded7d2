// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// Stored content is served over one loopback connection, the client included. test/bench compares other servers.
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

// Many registries limit each connection to about 25 MB/s. The result is the time of a cold pull through the cache as a
// multiple of a direct pull, and the bytes that the upstream sent as a multiple of the blob.
func BenchmarkLimitedConnections(b *testing.B) {
	const (
		size = 256 << 20
		rate = 25e6 // bytes per second
	)
	u := newOrigin(b, upstream.Options{})
	var sent atomic.Int64
	name := u.serveBlob(size, func(w http.ResponseWriter) http.ResponseWriter {
		return &limitedWriter{ResponseWriter: &countingWriter{w, &sent}, began: time.Now(), rate: rate}
	})
	cfg := u.config(b)
	client := u.front.Client()
	get := func(url string) time.Duration {
		began := time.Now()
		resp, err := client.Get(url)
		if err != nil {
			b.Fatal(err)
		}
		defer resp.Body.Close()
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != size {
			b.Fatalf("%d bytes, %v", n, err)
		}
		return time.Since(began)
	}
	for b.Loop() {
		direct := get(u.front.URL + name)
		sent.Store(0)
		cfg.Storage.Root = b.TempDir()
		c := start(b, cfg, cacheserver.Options{})
		cached := get("http://" + c.Address() + name)
		b.ReportMetric(cached.Seconds()/direct.Seconds(), "times-direct")
		b.ReportMetric(float64(sent.Load())/size, "times-blob")
		if err := c.stop(); err != nil {
			b.Fatal(err)
		}
	}
}

// serveBlob adds a random blob to the upstream and returns its path. Its responses are written to the result of wrap.
func (u *origin) serveBlob(size int, wrap func(http.ResponseWriter) http.ResponseWriter) (name string) {
	content := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(content)
	name = "/v2/" + repository + "/blobs/" + digest.FromBytes(content).String()
	u.inject(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != name {
			return false
		}
		http.ServeContent(wrap(w), r, "", time.Time{}, bytes.NewReader(content))
		return true
	})
	return name
}

// limitedWriter delays its writes so that they do not exceed a rate.
type limitedWriter struct {
	http.ResponseWriter
	began   time.Time
	rate    float64 // bytes per second
	written int64
}

func (w *limitedWriter) Write(p []byte) (int, error) {
	due := time.Duration(float64(w.written) / w.rate * float64(time.Second))
	<-time.After(due - time.Since(w.began))
	n, err := w.ResponseWriter.Write(p)
	w.written += int64(n)
	return n, err
}

// Many nodes pull a blob over TLS with few processors. The result is the time until all have it, the processor time of
// upstream, cache and clients, the bytes that the upstream sent as a multiple of the blob, and the longest time of a request
// on a new connection meanwhile, with which a node verifies that the cache is usable. Nodes wait for at most 0.6 s.
func BenchmarkHerd(b *testing.B) {
	const (
		size    = 64 << 20
		clients = 33
	)
	u := newOrigin(b, upstream.Options{})
	var sent atomic.Int64
	var rate float64 // of the upstream in bytes per second, 0 for unlimited
	name := u.serveBlob(size, func(w http.ResponseWriter) http.ResponseWriter {
		w = &countingWriter{w, &sent}
		if rate > 0 {
			w = &limitedWriter{ResponseWriter: w, began: time.Now(), rate: rate}
		}
		return w
	})
	ca, dir := newCA(b), b.TempDir()
	issue(b, ca, dir, time.Now())
	cfg := u.config(b)
	cfg.Listen.TLS.CertFile, cfg.Listen.TLS.KeyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.PEM())
	get := func(url string) (int64, error) {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}}
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport}).Get(url)
		if err != nil {
			return 0, err
		}
		n, err := io.Copy(io.Discard, resp.Body)
		return n, errors.Join(err, resp.Body.Close())
	}
	herd := func(b *testing.B, c *cache) {
		var pulls sync.WaitGroup
		for range clients {
			pulls.Go(func() {
				if n, err := get("https://" + c.Address() + name); err != nil || n != size {
					b.Errorf("%d bytes, %v", n, err)
				}
			})
		}
		done := make(chan struct{})
		go func() {
			pulls.Wait()
			close(done)
		}()
		var slowest time.Duration
		for probing := true; probing; {
			began := time.Now()
			if _, err := get("https://" + c.Address() + "/v2/"); err != nil {
				b.Error(err)
			}
			slowest = max(slowest, time.Since(began))
			select {
			case <-done:
				probing = false
			case <-time.After(50 * time.Millisecond):
			}
		}
		b.ReportMetric(float64(slowest.Milliseconds()), "ms-slowest-probe")
	}
	first := func(b *testing.B) {
		for b.Loop() {
			sent.Store(0)
			cfg.Storage.Root = b.TempDir()
			c := start(b, cfg, cacheserver.Options{})
			before := processorTime(b)
			herd(b, c)
			b.ReportMetric((processorTime(b) - before).Seconds(), "cpu-s")
			b.ReportMetric(float64(sent.Load())/size, "times-blob")
			if err := c.stop(); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("first", first)
	b.Run("first-4MiB-per-second", func(b *testing.B) {
		rate = 4 << 20
		defer func() { rate = 0 }()
		first(b)
	})
	b.Run("stored", func(b *testing.B) {
		cfg.Storage.Root = b.TempDir()
		c := start(b, cfg, cacheserver.Options{})
		if n, err := get("https://" + c.Address() + name); err != nil || n != size {
			b.Fatalf("%d bytes, %v", n, err)
		}
		for b.Loop() {
			herd(b, c)
		}
	})
}

// processorTime returns the processor time of this process, which includes upstream, cache and clients.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// countingWriter counts the bytes of all responses.
type countingWriter struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.sent.Add(int64(n))
	return n, err
}
