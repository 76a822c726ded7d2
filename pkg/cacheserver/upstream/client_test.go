// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/goleak"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/oci"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	repository = "library/alpine"
	manifest   = `{"schemaVersion":2,"config":{}}`
	layer      = "some layer"
)

var (
	manifestDigest = digest.FromString(manifest)
	layerDigest    = digest.FromString(layer)
	byTag          = oci.Reference{Tag: "v1"}
	byDigest       = oci.Reference{Digest: manifestDigest}
)

// registry is a server with a handler that records the requests.
type registry struct {
	*httptest.Server
	caFile string

	mu       sync.Mutex // guards requests
	requests []string
}

func serve(t *testing.T, handle http.HandlerFunc) *registry {
	t.Helper()
	r := &registry{}
	r.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.requests = append(r.requests, req.Method+" "+req.URL.Path)
		r.mu.Unlock()
		handle(w, req)
	}))
	r.Config.ErrorLog = log.New(io.Discard, "", 0) // clients leave on purpose
	r.StartTLS()
	t.Cleanup(r.Close)
	r.caFile = filepath.Join(t.TempDir(), "ca.crt")
	r.writeCA(t, r.caFile)
	return r
}

func (r *registry) writeCA(t *testing.T, path string) {
	t.Helper()
	content := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw})
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

func (r *registry) seen() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

func (r *registry) client(t *testing.T, o upstream.Options) *upstream.Client {
	t.Helper()
	if o.CAFile == "" {
		o.CAFile = r.caFile
	}
	return newClient(t, r.URL, o)
}

func newClient(t *testing.T, url string, o upstream.Options) *upstream.Client {
	t.Helper()
	c, err := upstream.New(url, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// content answers with the manifest and the layer.
func content(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.Contains(r.URL.Path, "/manifests/"):
		w.Header().Set("Content-Type", oci.MediaTypeManifest)
		w.Header().Set("Docker-Content-Digest", manifestDigest.String())
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(manifest))
	case strings.HasSuffix(r.URL.Path, "/blobs/"+layerDigest.String()):
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(layer))
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func TestContent(t *testing.T) {
	t.Parallel()
	var headers sync.Map
	r := serve(t, func(w http.ResponseWriter, req *http.Request) {
		headers.Store(req.Method+" "+req.URL.Path, req.Header.Clone())
		content(w, req)
	})
	metrics := prometheus.NewRegistry()
	c := r.client(t, upstream.Options{UserAgent: "registry-cache/v1", Registerer: metrics})

	described, err := c.HeadManifest(t.Context(), repository, byTag)
	want := upstream.Descriptor{MediaType: oci.MediaTypeManifest, Digest: manifestDigest, Size: int64(len(manifest))}
	if diff := cmp.Diff(want, described); err != nil || diff != "" {
		t.Errorf("HeadManifest: %v, -want +got\n%s", err, diff)
	}
	for _, ref := range []oci.Reference{byTag, byDigest} {
		m, err := c.Manifest(t.Context(), repository, ref)
		if err != nil || string(m.Content) != manifest || m.Digest != manifestDigest || m.MediaType != oci.MediaTypeManifest {
			t.Errorf("Manifest %s: %+v, %v", ref, m, err)
		}
	}
	if size, err := c.HeadBlob(t.Context(), repository, layerDigest); err != nil || size != int64(len(layer)) {
		t.Errorf("HeadBlob: %d, %v", size, err)
	}
	for _, offset := range []int64{0, 4} {
		if got := readBlob(t, c, offset); got != layer[offset:] {
			t.Errorf("Blob from %d: %q", offset, got)
		}
	}
	header, _ := headers.Load("HEAD /v2/library/alpine/manifests/v1")
	if got := header.(http.Header).Get("User-Agent"); got != "registry-cache/v1" {
		t.Errorf("User-Agent: %q", got)
	}
	if got, want := header.(http.Header).Get("Accept"), strings.Join(oci.ManifestMediaTypes(), ", ")+", */*;q=0.5"; got != want {
		t.Errorf("Accept: %q, want %q", got, want)
	}
	header, _ = headers.Load("GET /v2/library/alpine/blobs/" + layerDigest.String())
	if got := header.(http.Header).Get("Accept-Encoding"); got != "identity" {
		t.Errorf("Accept-Encoding: %q", got)
	}
	wantMetrics(t, metrics,
		fmt.Sprintf("registry_cache_upstream_bytes_total %d", 2*len(manifest)+len(layer)+len(layer[4:])),
		`registry_cache_upstream_requests_total{status="200"} 5`,
		`registry_cache_upstream_requests_total{status="206"} 1`,
		`registry_cache_upstream_latency_seconds_count 6`)
}

func TestBlobWithoutRanges(t *testing.T) {
	t.Parallel()
	r := serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, layer) })
	if got := readBlob(t, r.client(t, upstream.Options{}), 4); got != layer[4:] {
		t.Errorf("got %q, want %q", got, layer[4:])
	}
}

// Amazon's public registry answers 401 to HEAD of blobs that it sends in answer to GET.
func TestBlobWithoutHead(t *testing.T) {
	t.Parallel()
	const size = 32 << 20 // more than the buffers of a connection hold
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed,
		http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		for _, ranges := range []bool{true, false} {
			sent := make(chan int64, 1)
			r := serve(t, func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.Method == http.MethodHead:
					w.WriteHeader(status)
					return
				case ranges:
					http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(make([]byte, size)))
					sent <- 1
					return
				}
				w.Header().Set("Content-Length", fmt.Sprint(size))
				n, _ := io.Copy(w, bytes.NewReader(make([]byte, size))) // an error means that the client left
				sent <- n
			})
			metrics := prometheus.NewRegistry()
			c := r.client(t, upstream.Options{Registerer: metrics})
			if got, err := c.HeadBlob(t.Context(), repository, layerDigest); got != size || err != nil {
				t.Errorf("HEAD answered with %d, ranges %t: %d, %v", status, ranges, got, err)
			}
			if n := <-sent; n == size {
				t.Errorf("HEAD answered with %d, ranges %t: all was sent", status, ranges)
			}
			wantMetrics(t, metrics, "registry_cache_upstream_bytes_total 0")
		}
	}
	r := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	_, err := r.client(t, upstream.Options{}).HeadBlob(t.Context(), repository, layerDigest)
	if failed, ok := errors.AsType[*upstream.Error](err); !ok || !failed.Denied() {
		t.Errorf("a blob that is refused: %v", err)
	}
	r = serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	_, err = r.client(t, upstream.Options{}).HeadBlob(t.Context(), repository, layerDigest)
	if failed, ok := errors.AsType[*upstream.Error](err); !ok || !failed.NotFound() || len(r.seen()) != 2 {
		t.Errorf("a missing blob: %v, requests %v", err, r.seen())
	}
}

// Retry-After applies to the request of the first byte, too.
func TestBlobHeadWithRetryAfter(t *testing.T) {
	t.Parallel()
	r := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "60")
		w.WriteHeader(http.StatusTooManyRequests)
	})
	_, err := r.client(t, upstream.Options{}).HeadBlob(t.Context(), repository, layerDigest)
	if failed, ok := errors.AsType[*upstream.Error](err); !ok || !failed.RateLimited() || len(r.seen()) != 1 {
		t.Errorf("%v, requests %v", err, r.seen())
	}
}

// A blob reports that its request was refused with 429, also if a repetition was successful. A request that has an
// alternative is not repeated.
func TestBlobOfALimitedUpstream(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		refused, alternative bool
		requests             int64
	}{{false, false, 1}, {false, true, 1}, {true, false, 2}, {true, true, 1}} {
		var requests atomic.Int64
		r := serve(t, func(w http.ResponseWriter, req *http.Request) {
			if requests.Add(1) == 1 && test.refused {
				w.WriteHeader(http.StatusTooManyRequests)
				return
			}
			content(w, req)
		})
		ctx := t.Context()
		if test.alternative {
			ctx = upstream.WithAlternative(ctx)
		}
		blob, err := r.client(t, upstream.Options{}).Blob(ctx, repository, layerDigest, upstream.Range{})
		if requests.Load() != test.requests {
			t.Errorf("%+v: %d requests", test, requests.Load())
		}
		if test.refused && test.alternative {
			if failed, ok := errors.AsType[*upstream.Error](err); !ok || !failed.RateLimited() {
				t.Errorf("%+v: %v", test, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%+v: %v", test, err)
		}
		if blob.RateLimited != test.refused {
			t.Errorf("%+v: the blob reports %t", test, blob.RateLimited)
		}
		if err := blob.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A request for the rest of a manifest gets all of it if its ETag has changed.
func TestManifestIfRange(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		etag, later, want string
	}{
		{`"v1"`, `"v1"`, `206 If-Range "v1"`},
		{`"v1"`, `"v2"`, `200 If-Range "v1"`},
		{`W/"v1"`, `W/"v1"`, "206 If-Range "},
		{"", "", "206 If-Range "},
	} {
		answered := make(chan string, 1)
		r := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" {
				w.Header().Set("ETag", test.etag)
				w.Header().Set("Content-Length", strconv.Itoa(len(manifest)))
				io.WriteString(w, manifest[:4])
				return
			}
			recorded := httptest.NewRecorder()
			recorded.Header().Set("ETag", test.later)
			http.ServeContent(recorded, r, "", time.Time{}, strings.NewReader(manifest))
			answered <- fmt.Sprint(recorded.Code, " If-Range ", r.Header.Get("If-Range"))
			w.Header().Set("ETag", test.later)
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(manifest))
		})
		if m, err := r.client(t, upstream.Options{}).Manifest(t.Context(), repository, byTag); err != nil || string(m.Content) != manifest {
			t.Errorf("%+v: %v", test, err)
		}
		if how := <-answered; how != test.want {
			t.Errorf("ETag %q, then %q: answered with %s, want %s", test.etag, test.later, how, test.want)
		}
	}
}

func TestBlobRange(t *testing.T) {
	t.Parallel()
	for header, valid := range map[string]bool{
		"bytes 4-9/10":  true,
		"bytes 4-9/*":   true,
		"bytes 0-9/10":  false,
		"bytes 5-9/10":  false,
		"bytes 4-9/x":   false,
		"bytes 4-9/4":   false,
		"bytes */10":    false,
		"items 4-9/10":  false,
		"":              false,
		"bytes -4-9/10": false,
	} {
		r := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", header)
			w.WriteHeader(http.StatusPartialContent)
			io.WriteString(w, layer[4:])
		})
		blob, err := r.client(t, upstream.Options{}).Blob(t.Context(), repository, layerDigest, upstream.Range{Offset: 4})
		if (err == nil) != valid {
			t.Errorf("Content-Range %q: %v", header, err)
		}
		if err == nil {
			blob.Close()
		}
	}
}

func TestBlobRanges(t *testing.T) {
	t.Parallel()
	ranges := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(layer))
	})
	whole := serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, layer) })
	stripped := serve(t, func(w http.ResponseWriter, r *http.Request) { // by a proxy
		r.Header.Del("Range")
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(layer))
	})
	size := int64(len(layer))
	for _, test := range []struct {
		from   *registry
		part   upstream.Range
		offset int64
		body   string
		ranges bool
	}{
		{ranges, upstream.Range{}, 0, layer, true},
		{ranges, upstream.Range{Offset: 4}, 4, layer[4:], true},
		{ranges, upstream.Range{End: 3}, 0, layer[:3], true},
		{ranges, upstream.Range{Offset: 4, End: 6}, 4, layer[4:6], true},
		{whole, upstream.Range{Offset: 4, End: 6}, 0, layer, false},
		{stripped, upstream.Range{}, 0, layer, true},
		{stripped, upstream.Range{Offset: 4, End: 6}, 0, layer, false},
		{stripped, upstream.Range{End: 6}, 0, layer, false},
	} {
		blob, err := test.from.client(t, upstream.Options{}).Blob(t.Context(), repository, layerDigest, test.part)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(blob)
		blob.Close()
		if err != nil || string(body) != test.body || blob.Offset != test.offset || blob.Size != size || blob.Ranges != test.ranges {
			t.Errorf("%+v: %q from %d of %d, ranges %t, %v", test.part, body, blob.Offset, blob.Size, blob.Ranges, err)
		}
	}
}

func TestManifestErrors(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		ref    oci.Reference
		handle http.HandlerFunc
		want   string
	}{
		{"other content than the digest", byDigest, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, manifest+" ") },
			"GET library/alpine/manifests/" + manifestDigest.String() + ": the content has the digest " + digest.FromString(manifest+" ").String() + " instead of " + manifestDigest.String()},
		{"other content than announced for the tag", byTag, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Docker-Content-Digest", manifestDigest.String())
			io.WriteString(w, manifest+" ")
		}, "GET library/alpine/manifests/v1: the content has the digest " + digest.FromString(manifest+" ").String() + " instead of " + manifestDigest.String()},
		{"a page of something else", byTag, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<p>Log in") },
			"GET library/alpine/manifests/v1: the answer is no manifest"},
		{"an error with the status 200", byTag, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"errors":[]}`) },
			"GET library/alpine/manifests/v1: the answer is no manifest"},
		{"too large", byTag, func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, oci.MaxManifestSize+1)) },
			"GET library/alpine/manifests/v1: the answer has more than 4194304 bytes"},
		{"cut", byTag, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, manifest)
		}, "GET library/alpine/manifests/v1: unexpected EOF"},
		{"status", byTag, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) },
			"GET library/alpine/manifests/v1: upstream answered 418 I'm a teapot"},
		{"partial content that was not asked for", byTag, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusPartialContent) },
			"GET library/alpine/manifests/v1: upstream answered 206 Partial Content"},
		{"redirection to http", byTag, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/?signature=secret", http.StatusTemporaryRedirect)
		}, "GET library/alpine/manifests/v1: refusing http to 127.0.0.1:1: the remote URL is https"},
		{"redirection in a circle", byTag, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path+"?signature=secret", http.StatusTemporaryRedirect)
		}, "GET library/alpine/manifests/v1: redirected more than 10 times"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := serve(t, test.handle)
			_, err := r.client(t, upstream.Options{}).Manifest(t.Context(), repository, test.ref)
			if _, ok := errors.AsType[*upstream.Error](err); !ok || err.Error() != test.want {
				t.Errorf("got %v\nwant %s", err, test.want)
			}
		})
	}
}

func TestErrorClasses(t *testing.T) {
	t.Parallel()
	type class struct{ NotFound, Denied, RateLimited, Timeout, Temporary bool }
	for status, want := range map[int]class{
		http.StatusBadRequest:         {},
		http.StatusUnauthorized:       {Denied: true},
		http.StatusForbidden:          {Denied: true},
		http.StatusNotFound:           {NotFound: true},
		http.StatusRequestTimeout:     {Timeout: true, Temporary: true},
		http.StatusTooManyRequests:    {RateLimited: true, Temporary: true},
		http.StatusServiceUnavailable: {Temporary: true},
	} {
		r := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
		_, err := r.client(t, upstream.Options{}).HeadManifest(t.Context(), repository, byTag)
		failed, ok := errors.AsType[*upstream.Error](err)
		if !ok {
			t.Fatalf("status %d: %v", status, err)
		}
		got := class{failed.NotFound(), failed.Denied(), failed.RateLimited(), failed.Timeout(), failed.Temporary()}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("status %d: -want +got\n%s", status, diff)
		}
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	metrics := prometheus.NewRegistry()
	_, err = newClient(t, "https://"+address, upstream.Options{Registerer: metrics}).HeadManifest(t.Context(), repository, byTag)
	failed, ok := errors.AsType[*upstream.Error](err)
	if !ok || !failed.Temporary() || failed.Timeout() {
		t.Errorf("got %v, want a temporary error", err)
	}
	wantMetrics(t, metrics, `registry_cache_upstream_requests_total{status="none"} 1`)
}

// hanging answers with the beginning, if any, and then nothing until the client leaves.
func hanging(beginning string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if beginning != "" {
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, beginning)
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
		panic(http.ErrAbortHandler) // or the answer may overtake the end of the connection
	}
}

func TestSilentUpstream(t *testing.T) {
	t.Parallel()
	const limit = 50 * time.Millisecond
	isTimeout := func(err error) bool {
		failed, ok := errors.AsType[*upstream.Error](err)
		return ok && failed.Timeout() && failed.Temporary()
	}
	t.Run("headers", func(t *testing.T) {
		t.Parallel()
		c := serve(t, hanging("")).client(t, upstream.Options{HeaderTimeout: limit})
		if _, err := c.HeadManifest(t.Context(), repository, byTag); !isTimeout(err) {
			t.Errorf("got %v, want a timeout", err)
		}
	})
	t.Run("TLS", func(t *testing.T) {
		t.Parallel()
		listener, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts connections, no process responds
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		c := newClient(t, "https://"+listener.Addr().String(), upstream.Options{HeaderTimeout: limit})
		if _, err := c.HeadManifest(t.Context(), repository, byTag); !isTimeout(err) {
			t.Errorf("got %v, want a timeout", err)
		}
	})
	t.Run("body", func(t *testing.T) {
		t.Parallel()
		c := serve(t, hanging(layer)).client(t, upstream.Options{IdleTimeout: 10 * limit})
		blob, err := c.Blob(t.Context(), repository, layerDigest, upstream.Range{})
		if err != nil {
			t.Fatal(err)
		}
		defer blob.Close()
		got, err := io.ReadAll(blob)
		if string(got) != layer || !isTimeout(err) {
			t.Errorf("got %q, %v, want the beginning and a timeout", got, err)
		}
	})
	t.Run("body that never ends", func(t *testing.T) {
		t.Parallel()
		c := serve(t, func(w http.ResponseWriter, r *http.Request) {
			tick := time.NewTicker(limit / 10)
			defer tick.Stop()
			for {
				io.WriteString(w, " ")
				w.(http.Flusher).Flush()
				select {
				case <-tick.C:
				case <-r.Context().Done():
					return
				}
			}
		}).client(t, upstream.Options{AnswerTimeout: 4 * limit})
		if _, err := c.Manifest(t.Context(), repository, byTag); !isTimeout(err) {
			t.Errorf("manifest: %v, want a timeout", err)
		}
		blob, err := c.Blob(t.Context(), repository, layerDigest, upstream.Range{})
		if err != nil {
			t.Fatal(err)
		}
		defer blob.Close()
		// A blob may take longer.
		began := time.Now()
		for time.Since(began) < 8*limit {
			if _, err := io.CopyN(io.Discard, blob, 1); err != nil {
				t.Fatalf("blob after %s: %v", time.Since(began), err)
			}
		}
	})
	t.Run("the caller's own end is none of the upstream", func(t *testing.T) {
		t.Parallel()
		c := serve(t, hanging("")).client(t, upstream.Options{})
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		_, err := c.HeadManifest(ctx, repository, byTag)
		if _, ok := errors.AsType[*upstream.Error](err); ok || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the end of the context", err)
		}
	})
}

func TestSlowReaderIsNoSlowUpstream(t *testing.T) {
	t.Parallel()
	const idle = 250 * time.Millisecond
	c := serve(t, content).client(t, upstream.Options{IdleTimeout: idle})
	blob, err := c.Blob(t.Context(), repository, layerDigest, upstream.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	first := make([]byte, 1)
	if _, err := io.ReadFull(blob, first); err != nil {
		t.Fatal(err)
	}
	<-time.After(2 * idle) // the time that a slow client takes
	if rest, err := io.ReadAll(blob); err != nil || string(first)+string(rest) != layer {
		t.Errorf("got %q%q, %v", first, rest, err)
	}
}

func TestCAFileIsReadAgain(t *testing.T) {
	t.Parallel()
	r := serve(t, content)
	other, err := os.ReadFile("testdata/other-ca.crt")
	if err != nil {
		t.Fatal(err)
	}
	caFile := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(caFile, other, 0o644); err != nil {
		t.Fatal(err)
	}
	c := r.client(t, upstream.Options{CAFile: caFile})
	if _, err := c.HeadBlob(t.Context(), repository, layerDigest); err == nil {
		t.Fatal("the upstream was trusted without its CA")
	}
	r.writeCA(t, caFile)
	if _, err := c.HeadBlob(t.Context(), repository, layerDigest); err != nil {
		t.Errorf("after the file was replaced: %v", err)
	}
	if err := os.WriteFile(caFile, []byte("not a certificate"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := c.HeadBlob(t.Context(), repository, layerDigest); err != nil {
		t.Errorf("after the file was broken: %v", err)
	}
}

func TestNewErrors(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		url  string
		o    upstream.Options
		want string
	}{
		{"no host", "https://", upstream.Options{}, "parsing the remote URL: it must have scheme and host"},
		{"header timeout beyond containerd's", "https://a", upstream.Options{HeaderTimeout: 28 * time.Second}, "the header timeout must be at most 27s"},
		{"missing CA file", "https://a", upstream.Options{CAFile: "/nonexistent"}, "reading CA file: stat /nonexistent: no such file or directory"},
		{"CA file without certificate", "https://a", upstream.Options{CAFile: empty}, "reading CA file " + empty + ": one of its PEM blocks cannot be read, want -----BEGIN CERTIFICATE-----, base64, -----END CERTIFICATE-----"},
		{"missing credentials", "https://a", upstream.Options{CredentialsDir: "/nonexistent"}, "reading credentials: open /nonexistent/username: no such file or directory"},
	} {
		if _, err := upstream.New(test.url, test.o); err == nil || err.Error() != test.want {
			t.Errorf("%s: %v, want %s", test.name, err, test.want)
		}
	}
}

func readBlob(t *testing.T, c *upstream.Client, offset int64) string {
	t.Helper()
	blob, err := c.Blob(t.Context(), repository, layerDigest, upstream.Range{Offset: offset})
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	if blob.Size != int64(len(layer)) {
		t.Errorf("size %d, want %d", blob.Size, len(layer))
	}
	if _, err := io.CopyN(io.Discard, blob, offset-blob.Offset); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(blob)
	if err != nil {
		t.Fatal(err)
	}
	return string(got)
}

// wantMetrics compares lines of the text format.
func wantMetrics(t *testing.T, gatherer prometheus.Gatherer, lines ...string) {
	t.Helper()
	rec := httptest.NewRecorder()
	promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	got := strings.Split(rec.Body.String(), "\n")
	for _, line := range lines {
		if !slices.Contains(got, line) {
			t.Errorf("the metrics lack %q:\n%s", line, rec.Body)
		}
	}
}
