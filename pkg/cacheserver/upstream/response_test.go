// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/oci"
)

// trickle writes one byte per interval until the client closes the connection.
func trickle(w http.ResponseWriter, r *http.Request, status int, interval time.Duration) {
	w.WriteHeader(status)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if _, err := io.WriteString(w, " "); err != nil {
			return
		}
		http.NewResponseController(w).Flush() // the next write returns the error
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

// The body of a response that cannot be used does not delay the result: dataplane B2.
func TestTricklingErrorBody(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusNotFound, http.StatusForbidden, http.StatusServiceUnavailable, http.StatusUnauthorized} {
		r := serve(t, func(w http.ResponseWriter, r *http.Request) { trickle(w, r, status, 100*time.Millisecond) })
		c := r.client(t, upstream.Options{})
		began := time.Now()
		_, err := c.Blob(t.Context(), repository, layerDigest, upstream.Range{})
		if failed, ok := errors.AsType[*upstream.Error](err); !ok || failed.StatusCode != status {
			t.Errorf("status %d: %v", status, err)
		}
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("status %d: the error took %s", status, took)
		}
	}
}

// The bodies of a redirect and of a challenge do not delay the request that follows.
func TestTricklingBodiesBeforeTheContent(t *testing.T) {
	t.Parallel()
	var challenged, redirected atomic.Int64
	r := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			io.WriteString(w, `{"token":"t"}`)
		case r.URL.Path == "/data":
			io.WriteString(w, layer)
		case r.Header.Get("Authorization") == "":
			challenged.Add(1)
			w.Header().Set("WWW-Authenticate", `Bearer realm="https://`+r.Host+`/token"`)
			trickle(w, r, http.StatusUnauthorized, 100*time.Millisecond)
		default:
			redirected.Add(1)
			w.Header().Set("Location", "/data")
			trickle(w, r, http.StatusTemporaryRedirect, 100*time.Millisecond)
		}
	})
	if got := readBlob(t, r.client(t, upstream.Options{HeaderTimeout: 4 * time.Second}), 0); got != layer {
		t.Errorf("got %q", got)
	}
	if challenged.Load() != 1 || redirected.Load() != 1 {
		t.Errorf("%d challenges, %d redirects", challenged.Load(), redirected.Load())
	}
}

// A small body is read to its end, so that the next request uses the same connection.
func TestSmallErrorBodyKeepsTheConnection(t *testing.T) {
	t.Parallel()
	var addresses []string
	r := serve(t, func(w http.ResponseWriter, r *http.Request) {
		addresses = append(addresses, r.RemoteAddr)
		http.Error(w, strings.Repeat("x", 1000), http.StatusNotFound)
	})
	c := r.client(t, upstream.Options{})
	for range 3 {
		if _, err := c.HeadManifest(t.Context(), repository, byTag); err == nil {
			t.Error("no error")
		}
		if _, err := c.Manifest(t.Context(), repository, byTag); err == nil {
			t.Error("no error")
		}
	}
	for _, address := range addresses {
		if address != addresses[0] {
			t.Fatalf("connections from %v, want one", addresses)
		}
	}
}

// encoded applies the codings in their order.
func encoded(t *testing.T, content string, codings ...string) []byte {
	t.Helper()
	data := []byte(content)
	for _, coding := range codings {
		var buffer bytes.Buffer
		var w io.WriteCloser
		var err error
		switch coding {
		case "gzip":
			w = gzip.NewWriter(&buffer)
		case "zstd":
			w, err = zstd.NewWriter(&buffer)
		case "zlib":
			w = zlib.NewWriter(&buffer)
		case "flate":
			w, err = flate.NewWriter(&buffer, flate.BestSpeed)
		}
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.Write(data)
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		data = buffer.Bytes()
	}
	return data
}

// Content with a coding that was not requested is decoded: dataplane A5, upstreams B13.
func TestContentEncoding(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		header  string
		codings []string
	}{
		{"gzip", []string{"gzip"}},
		{"X-GZIP", []string{"gzip"}},
		{"zstd", []string{"zstd"}},
		{"deflate", []string{"zlib"}},
		{"deflate", []string{"flate"}},
		{"gzip, zstd", []string{"gzip", "zstd"}},
		{"identity,gzip", []string{"gzip"}},
		{"identity", nil},
		{"", nil},
	} {
		t.Run(tc.header, func(t *testing.T) {
			t.Parallel()
			r := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if got := r.Header.Get("Accept-Encoding"); got != "identity" {
					t.Errorf("%s %s: Accept-Encoding %q", r.Method, r.URL.Path, got)
				}
				content := layer
				if strings.Contains(r.URL.Path, "/manifests/") {
					content = manifest
					w.Header().Set("Docker-Content-Digest", manifestDigest.String())
				}
				if tc.codings != nil {
					w.Header().Set("Accept-Ranges", "bytes") // of the encoded content
				}
				w.Header().Set("Content-Encoding", tc.header)
				w.Write(encoded(t, content, tc.codings...))
			})
			c := r.client(t, upstream.Options{})
			m, err := c.Manifest(t.Context(), repository, byTag)
			if err != nil || string(m.Content) != manifest {
				t.Errorf("manifest: %+v, %v", m, err)
			}
			wantManifest, wantLayer := int64(len(manifest)), int64(len(layer))
			if tc.codings != nil {
				// The length in the header is that of the encoded content.
				wantManifest, wantLayer = -1, -1
			}
			if described, err := c.HeadManifest(t.Context(), repository, byTag); err != nil || described.Size != wantManifest {
				t.Errorf("HEAD manifest: %+v, %v", described, err)
			}
			if size, err := c.HeadBlob(t.Context(), repository, layerDigest); err != nil || size != wantLayer {
				t.Errorf("HEAD blob: %d, %v", size, err)
			}
			for _, offset := range []int64{0, 4} {
				blob, err := c.Blob(t.Context(), repository, layerDigest, upstream.Range{Offset: offset})
				if err != nil {
					t.Fatal(err)
				}
				content, err := io.ReadAll(blob)
				if err != nil || string(content) != layer || blob.Ranges || blob.Size != wantLayer {
					t.Errorf("blob from %d: %q, size %d, ranges %t, %v", offset, content, blob.Size, blob.Ranges, err)
				}
				if err := blob.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// Content that cannot be decoded is an error before the first byte, or the first read that cannot be right.
func TestUnusableContentEncoding(t *testing.T) {
	t.Parallel()
	const bomb = 64 << 20
	for _, tc := range []struct {
		name, header string
		status       int
		body         []byte
		want         string
	}{
		{"unknown coding", "br", 200, []byte(layer), `the response has the content coding "br", which is not supported`},
		{"several codings with an unknown one", "gzip, br", 200, []byte(layer), `the response has the content coding "br", which is not supported`},
		{"too many codings", strings.Repeat("gzip,", 9), 200, []byte(layer), "the response has more than 4 content codings"},
		{"not gzip", "gzip", 200, []byte(layer), "gzip: invalid header"},
		{"a part of encoded content", "gzip", 206, encoded(t, layer, "gzip"), `the response is a range of content with the coding "gzip"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Encoding", tc.header)
				w.Header().Set("Content-Range", "bytes 4-9/10")
				w.WriteHeader(tc.status)
				w.Write(tc.body)
			})
			blob, err := r.client(t, upstream.Options{}).Blob(t.Context(), repository, layerDigest, upstream.Range{Offset: 4})
			if err == nil {
				blob.Close()
			}
			failed, ok := errors.AsType[*upstream.Error](err)
			if !ok || !failed.Temporary() || failed.Err.Error() != tc.want {
				t.Errorf("got %v\nwant %s", err, tc.want)
			}
		})
	}
	t.Run("cut", func(t *testing.T) {
		t.Parallel()
		r := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			body := encoded(t, layer, "gzip")
			w.Write(body[:len(body)-4])
		})
		blob, err := r.client(t, upstream.Options{}).Blob(t.Context(), repository, layerDigest, upstream.Range{})
		if err != nil {
			t.Fatal(err)
		}
		defer blob.Close()
		_, err = io.ReadAll(blob)
		if _, ok := errors.AsType[*upstream.Error](err); !ok || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("more content than deflate can encode", func(t *testing.T) {
		t.Parallel()
		body := encoded(t, strings.Repeat("\x00", bomb), "zstd")
		r := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "zstd")
			w.Write(body)
		})
		blob, err := r.client(t, upstream.Options{}).Blob(t.Context(), repository, layerDigest, upstream.Range{})
		if err != nil {
			t.Fatal(err)
		}
		defer blob.Close()
		n, err := io.Copy(io.Discard, blob)
		if _, ok := errors.AsType[*upstream.Error](err); !ok || n == bomb {
			t.Errorf("%d bytes of content in %d bytes, %v", n, len(body), err)
		}
	})
	t.Run("a manifest of more than 4 MiB", func(t *testing.T) {
		t.Parallel()
		r := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(encoded(t, strings.Repeat(" ", oci.MaxManifestSize+1), "gzip"))
		})
		if _, err := r.client(t, upstream.Options{}).Manifest(t.Context(), repository, byTag); err == nil || !strings.Contains(err.Error(), "more than 4194304 bytes") {
			t.Errorf("got %v", err)
		}
	})
}
