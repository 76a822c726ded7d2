// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/pkg/oci"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// want is the response to a client.
type want struct {
	status int
	code   oci.ErrorCode // of errors
	cut    bool          // the body must not look complete
	stale  bool          // with a warning
}

var (
	fine        = want{status: http.StatusOK}
	stale       = want{status: http.StatusOK, stale: true}
	cut         = want{status: http.StatusOK, cut: true}
	unavailable = want{status: http.StatusBadGateway, code: oci.CodeUnavailable}
	silent      = want{status: http.StatusGatewayTimeout, code: oci.CodeUnavailable}
	denied      = want{status: http.StatusForbidden, code: oci.CodeDenied}
	limited     = want{status: http.StatusServiceUnavailable, code: oci.CodeTooManyRequests}
	missing     = want{status: http.StatusNotFound} // the code names the missing object
)

// faultyBody answers requests for content, and leaves HEAD to the registry.
type faultyBody func(w http.ResponseWriter, r *http.Request, content []byte)

// upstreamFault is a row of the table: a fault of all requests to an upstream, and the responses to clients meanwhile.
type upstreamFault struct {
	name string
	// answer is for all requests, body for those with content.
	answer func(w http.ResponseWriter, r *http.Request)
	body   faultyBody
	// Content that is not stored: HEAD of a tag, a manifest or a blob, GET of a manifest by tag or digest, and of a blob.
	head, manifest, blob want
	// Stored content: HEAD and GET of a tag. Content by digest is always there.
	warmTag want
	// The default is that of the server, so that a busy machine is no silent upstream.
	headerTimeout, idleTimeout time.Duration
}

func answers(status int, header ...string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		io.WriteString(w, `{"errors":[{"code":"TEAPOT","message":"of the upstream"}]}`)
	}
}

// trickles responds with a body that has one byte per second.
func trickles(status int) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		if r.Method == http.MethodHead {
			return // a response without a body
		}
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			if _, err := io.WriteString(w, " "); err != nil {
				return
			}
			http.NewResponseController(w).Flush()
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			}
		}
	}
}

// halves sends the first half of the content with the length of all of it.
func halves(w http.ResponseWriter, _ *http.Request, content []byte) {
	w.Header().Set("Content-Length", itoa(len(content)))
	w.Write(content[:len(content)/2])
}

var challenges atomic.Int64 // makes each challenge another one

var upstreamFaults = []upstreamFault{
	{name: "no answer", headerTimeout: 500 * time.Millisecond,
		answer: func(_ http.ResponseWriter, r *http.Request) { hang(r) },
		head:   silent, manifest: silent, blob: silent, warmTag: stale},
	{name: "silence in the middle of bodies", idleTimeout: 500 * time.Millisecond,
		body: func(w http.ResponseWriter, r *http.Request, content []byte) {
			halves(w, r, content)
			http.NewResponseController(w).Flush()
			hang(r)
		},
		head: fine, manifest: silent, blob: cut, warmTag: fine},
	{name: "end of the connection without an answer",
		answer: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		head:   unavailable, manifest: unavailable, blob: unavailable, warmTag: stale},
	{name: "401 without a challenge", answer: answers(401), head: denied, manifest: denied, blob: denied, warmTag: denied},
	{name: "401 with a challenge of an unknown scheme", answer: answers(401, "WWW-Authenticate", "Negotiate"),
		head: denied, manifest: denied, blob: denied, warmTag: denied},
	{name: "401 with a challenge for credentials that are not there", answer: answers(401, "WWW-Authenticate", `Basic realm="registry"`),
		head: denied, manifest: denied, blob: denied, warmTag: denied},
	{name: "401 with another challenge each time",
		answer: func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				io.WriteString(w, `{"token":"useless"}`)
				return
			}
			n := challenges.Add(1)
			answers(401, "WWW-Authenticate", fmt.Sprintf(`Bearer realm="https://%s/token",service="s%d",scope="repository:%d:pull"`, r.Host, n, n))(w, r)
		},
		head: denied, manifest: denied, blob: denied, warmTag: denied},
	{name: "401 and a token server that refuses",
		answer: func(w http.ResponseWriter, r *http.Request) {
			answers(401, "WWW-Authenticate", fmt.Sprintf(`Bearer realm="https://%s/token"`, r.Host))(w, r)
		},
		head: denied, manifest: denied, blob: denied, warmTag: denied},
	{name: "401 and a token server that is rate limited",
		answer: func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				w.WriteHeader(http.StatusTooManyRequests)
				return
			}
			answers(401, "WWW-Authenticate", fmt.Sprintf(`Bearer realm="https://%s/token"`, r.Host))(w, r)
		},
		head: limited, manifest: limited, blob: limited, warmTag: stale},
	{name: "401 and a token server that is gone",
		answer: func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			answers(401, "WWW-Authenticate", fmt.Sprintf(`Bearer realm="https://%s/token"`, r.Host))(w, r)
		},
		// Not 404, and no end of the tags that are stored.
		head: unavailable, manifest: unavailable, blob: unavailable, warmTag: stale},
	{name: "405 for HEAD and 503 for GET",
		answer: func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			w.WriteHeader(http.StatusServiceUnavailable)
		},
		head: unavailable, manifest: unavailable, blob: unavailable, warmTag: stale},
	{name: "403", answer: answers(403), head: denied, manifest: denied, blob: denied, warmTag: denied},
	{name: "404", answer: answers(404), head: missing, manifest: missing, blob: missing, warmTag: missing},
	{name: "404 with a body of one byte per second", answer: trickles(404), head: missing, manifest: missing, blob: missing, warmTag: missing},
	{name: "403 with a body of one byte per second", answer: trickles(403), head: denied, manifest: denied, blob: denied, warmTag: denied},
	{name: "503 with a body of one byte per second", answer: trickles(503), head: unavailable, manifest: unavailable, blob: unavailable, warmTag: stale},
	{name: "redirection with a body of one byte per second to a blob that does not exist",
		answer: func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/nothing" {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			w.Header().Set("Location", "/nothing")
			trickles(307)(w, r)
		},
		head: missing, manifest: missing, blob: missing, warmTag: missing},
	{name: "content with an unknown coding",
		body: func(w http.ResponseWriter, _ *http.Request, content []byte) {
			w.Header().Set("Content-Encoding", "br")
			w.Write(content)
		},
		head: fine, manifest: unavailable, blob: unavailable, warmTag: fine},
	{name: "408", answer: answers(408), head: silent, manifest: silent, blob: silent, warmTag: stale},
	{name: "429 with Retry-After", answer: answers(429, "Retry-After", "60"), head: limited, manifest: limited, blob: limited, warmTag: stale},
	{name: "500", answer: answers(500), head: unavailable, manifest: unavailable, blob: unavailable, warmTag: stale},
	{name: "502", answer: answers(502), head: unavailable, manifest: unavailable, blob: unavailable, warmTag: stale},
	{name: "503 with Retry-After", answer: answers(503, "Retry-After", "60"), head: unavailable, manifest: unavailable, blob: unavailable, warmTag: stale},
	{name: "504", answer: answers(504), head: unavailable, manifest: unavailable, blob: unavailable, warmTag: stale},
	{name: "a page of something else", // such as that of a proxy that requires a login
		answer: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(strings.Repeat("<p>Log in", 1000)))
		},
		// The response to HEAD of a blob looks correct.
		manifest: unavailable, blob: cut, warmTag: stale},
	{name: "bodies that break off", body: halves, head: fine, manifest: unavailable, blob: cut, warmTag: fine},
	{name: "bodies that come slowly", idleTimeout: time.Second,
		body: func(w http.ResponseWriter, _ *http.Request, content []byte) {
			w.Header().Set("Content-Length", itoa(len(content)))
			const pieces = 12
			for i := range pieces {
				w.Write(content[i*len(content)/pieces : (i+1)*len(content)/pieces])
				http.NewResponseController(w).Flush()
				<-time.After(100 * time.Millisecond) // together more than the idle timeout
			}
		},
		head: fine, manifest: fine, blob: fine, warmTag: fine},
	{name: "other content",
		body: func(w http.ResponseWriter, _ *http.Request, content []byte) {
			w.Header().Set("Content-Length", itoa(len(content)))
			other := bytes.Clone(content)
			other[len(other)/2]++
			w.Write(other)
		},
		head: fine, manifest: unavailable, blob: cut, warmTag: fine},
	{name: "content that is too short",
		body: func(w http.ResponseWriter, _ *http.Request, content []byte) {
			w.Header().Set("Content-Length", itoa(len(content)-10))
			w.Write(content[:len(content)-10])
		},
		head: fine, manifest: unavailable, blob: cut, warmTag: fine},
	{name: "a length that is too large",
		body: func(w http.ResponseWriter, _ *http.Request, content []byte) {
			w.Header().Set("Content-Length", itoa(len(content)+10))
			w.Write(content)
		},
		head: fine, manifest: unavailable, blob: cut, warmTag: fine},
	{name: "bodies of more than a manifest's 4 MiB",
		body: func(w http.ResponseWriter, _ *http.Request, content []byte) {
			w.Header().Set("Content-Length", itoa(len(content)+oci.MaxManifestSize))
			w.Write(content)
			io.Copy(w, io.LimitReader(spaces{}, oci.MaxManifestSize))
		},
		head: fine, manifest: unavailable, blob: cut, warmTag: fine},
	{name: "redirection in a circle",
		answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path+"?signature=secret", http.StatusTemporaryRedirect)
		},
		head: unavailable, manifest: unavailable, blob: unavailable, warmTag: stale},
	{name: "redirection to nowhere", answer: answers(307), head: unavailable, manifest: unavailable, blob: unavailable, warmTag: unavailable},
	{name: "redirection to http",
		answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+r.Host+"/?signature=secret", http.StatusTemporaryRedirect)
		},
		head: unavailable, manifest: unavailable, blob: unavailable, warmTag: stale},
}

// spaces is endless.
type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	return copy(p, bytes.Repeat([]byte{' '}, len(p))), nil
}

// faulty is an upstream with an image, and the requests of a client for it.
type faulty struct {
	*origin
	contents map[string][]byte // by the last element of the path
	// digest of the manifest, and layer of the blob that is asked for
	digest, layer string
}

func (u *faulty) tag() string      { return "manifests/" + tag }
func (u *faulty) manifest() string { return "manifests/" + u.digest }
func (u *faulty) blob() string     { return "blobs/" + u.layer }

func newFaulty(t *testing.T, o upstream.Options) *faulty {
	t.Helper()
	u := &faulty{origin: newOrigin(t, o), contents: map[string][]byte{}}
	image := u.push(t, tag, 1)
	digests, blobs := layers(t, image)
	for i, d := range digests {
		u.contents[d] = blobs[i]
	}
	raw, err := image.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	u.contents[tag], u.contents[digestOf(t, image)], u.contents[digest.FromBytes(config).String()] = raw, raw, config
	u.digest, u.layer = digestOf(t, image), digests[0]
	return u
}

func (u *faulty) begin(row upstreamFault) {
	u.inject(func(w http.ResponseWriter, r *http.Request) bool {
		if row.answer != nil {
			row.answer(w, r)
			return true
		}
		content, ok := u.contents[path.Base(r.URL.Path)]
		if r.Method != http.MethodGet || !ok {
			return false
		}
		row.body(w, r, content)
		return true
	})
}

// TestUpstreamFaults has a row for each way in which an upstream can fail, and in it every request of a client: with
// an empty volume, and with one that has all of the image.
func TestUpstreamFaults(t *testing.T) {
	t.Parallel()
	for _, row := range upstreamFaults {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			o := cacheserver.Options{IdleTimeout: row.idleTimeout}
			t.Run("warm", func(t *testing.T) {
				t.Parallel()
				u := newFaulty(t, upstream.Options{})
				u.headerTimeout = row.headerTimeout
				u.warm(t, row, o)
			})
			for _, ask := range []struct {
				name, method string
				path         func(*faulty) string
				want         want
				header       []string
			}{
				{"HEAD tag", "HEAD", (*faulty).tag, row.head, nil},
				{"GET tag", "GET", (*faulty).tag, row.manifest, nil},
				{"HEAD manifest", "HEAD", (*faulty).manifest, row.head, nil},
				{"GET manifest", "GET", (*faulty).manifest, row.manifest, nil},
				{"HEAD blob", "HEAD", (*faulty).blob, row.head, nil},
				{"GET blob", "GET", (*faulty).blob, row.blob, nil},
				{"GET range of blob", "GET", (*faulty).blob, row.blob, []string{"Range", "bytes=500-"}},
			} {
				if ask.want == (want{}) {
					continue // the upstream's response cannot be distinguished from a correct one
				}
				t.Run("cold "+ask.name, func(t *testing.T) {
					t.Parallel()
					u := newFaulty(t, upstream.Options{})
					u.headerTimeout = row.headerTimeout
					c := start(t, u.config(t), o)
					u.begin(row)
					u.check(t, c, ask.method, ask.path(u), ask.want, ask.header...)
					c.settle(t)
					checkStore(t, c.root)
					if ask.want.status >= 400 || ask.want.cut {
						for _, file := range committed(t, c.root) {
							t.Errorf("kept: %s", file)
						}
					}
					u.inject(nil)
					u.check(t, c, ask.method, ask.path(u), fine, ask.header...)
				})
			}
		})
	}
}

// warm sends requests to a cache that has all of the image.
func (u *faulty) warm(t *testing.T, row upstreamFault, o cacheserver.Options) {
	c := start(t, u.config(t), o)
	if err := c.pull(t.Context(), tag); err != nil {
		t.Fatal(err)
	}
	c.settle(t)
	u.begin(row)
	for range 2 { // the first failure must not change the next response
		for _, method := range []string{"HEAD", "GET"} {
			u.check(t, c, method, u.tag(), row.warmTag)
			u.check(t, c, method, u.manifest(), fine)
			u.check(t, c, method, u.blob(), fine)
		}
		u.check(t, c, "GET", u.blob(), fine, "Range", "bytes=500-")
	}
	c.settle(t)
	checkStore(t, c.root)
	u.inject(nil)
	if err := c.pull(t.Context(), tag); err != nil {
		t.Errorf("pull from the upstream when it is well again: %v", err)
	}
	if strings.Contains(c.log.String(), "secret") {
		t.Error("a signature is in the log")
	}
}

// check makes a request and compares the response with the expected one, and with those that no client may receive.
func (u *faulty) check(t *testing.T, c *cache, method, name string, want want, header ...string) {
	t.Helper()
	began := time.Now()
	got := c.do(t, method, name, header...)
	// Less than the time that containerd waits for a header, and far less than it waits for a body.
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("%s %s: took %s", method, name, took)
	}
	content := u.contents[path.Base(name)]
	if len(header) > 0 && want.status == http.StatusOK {
		want.status, content = http.StatusPartialContent, content[500:]
	}
	if got.status != want.status {
		t.Errorf("%s %s: status %d, want %d: %.200s", method, name, got.status, want.status, got.body)
		return
	}
	if warned := got.header.Get("Warning"); (warned == `111 registry-cache "Revalidation Failed"`) != want.stale {
		t.Errorf("%s %s: Warning %q, want one: %t", method, name, warned, want.stale)
	}
	switch {
	case want.cut && got.err == nil:
		t.Errorf("%s %s: a body of %d bytes looks complete", method, name, len(got.body))
	case want.cut:
	case got.err != nil:
		t.Errorf("%s %s: %v", method, name, got.err)
	case want.status < 300:
		if d := got.header.Get("Docker-Content-Digest"); d != digest.FromBytes(u.contents[path.Base(name)]).String() {
			t.Errorf("%s %s: digest %s", method, name, d)
		}
		if got.header.Get("Content-Length") != itoa(len(content)) {
			t.Errorf("%s %s: length %s, want %d", method, name, got.header.Get("Content-Length"), len(content))
		}
		if method == http.MethodGet && !bytes.Equal(got.body, content) {
			t.Errorf("%s %s: %d bytes, want other %d", method, name, len(got.body), len(content))
		}
	case method == http.MethodGet:
		code := want.code
		if want == missing {
			code = oci.CodeManifestUnknown
			if strings.HasPrefix(name, "blobs/") {
				code = oci.CodeBlobUnknown
			}
		}
		var body oci.ErrorBody
		if err := json.Unmarshal(got.body, &body); err != nil || len(body.Errors) != 1 || body.Errors[0].Code != code {
			t.Errorf("%s %s: %s, %v, want the code %s", method, name, got.body, err, code)
		}
		if bytes.Contains(got.body, []byte("secret")) {
			t.Errorf("%s %s: a signature is in the answer: %s", method, name, got.body)
		}
	}
}

// checkStore fails if a file on the volume is unfinished or has content that its name does not match. The server may run, and
// delete unusable content meanwhile: a link is deleted before its content.
func checkStore(t *testing.T, root string) {
	t.Helper()
	for _, file := range notKept(t, root) {
		content, err := os.ReadFile(filepath.Join(root, file))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Error(err)
			continue
		}
		elements := strings.Split(file, "/")
		named := "sha256:" + elements[max(len(elements)-2, 0)]
		switch {
		case strings.HasPrefix(file, "docker/registry/v2/blobs/"):
			if got := digest.FromBytes(content); got.String() != named {
				t.Errorf("%s has the digest %s", file, got)
			}
		case strings.HasSuffix(file, "/current/link"):
			if d := string(content); !strings.Contains(strings.Join(files(t, root), "\n"), strings.TrimPrefix(d, "sha256:")+"/data") {
				if now, err := os.ReadFile(filepath.Join(root, file)); errors.Is(err, fs.ErrNotExist) || string(now) != d {
					continue
				}
				t.Errorf("%s names %q, which is not there", file, d)
			}
		case strings.HasPrefix(file, "docker/"):
			if string(content) != named {
				t.Errorf("%s has the content %q", file, content)
			}
		case file != "registry-cache/last-use" && file != "scheduler-state.json":
			t.Errorf("%s is left behind", file)
		}
	}
}

// Registries keep blobs elsewhere, and send clients there with a signature in the address.
func TestRedirectionToAnotherHost(t *testing.T) {
	t.Parallel()
	u := newFaulty(t, upstream.Options{TokenHosts: []string{"docker.io"}})
	var leaked, served atomic.Int64
	storage := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" || r.Header.Get("Referer") != "" {
			leaked.Add(1)
		}
		served.Add(1)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(u.contents[path.Base(r.URL.Path)]))
	}))
	defer storage.Close()
	u.inject(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") || r.Header.Get("Authorization") == "" {
			return false
		}
		http.Redirect(w, r, storage.URL+"/"+path.Base(r.URL.Path)+"?signature=secret", http.StatusTemporaryRedirect)
		return true
	})
	c := start(t, u.config(t), cacheserver.Options{})
	u.check(t, c, "HEAD", u.blob(), fine)
	u.check(t, c, "GET", u.blob(), fine)
	c.settle(t)
	u.check(t, c, "GET", u.blob(), fine, "Range", "bytes=500-")
	if leaked.Load() != 0 || served.Load() != 2 {
		t.Errorf("the other host got %d requests, %d with headers of the upstream's", served.Load(), leaked.Load())
	}
	checkStore(t, c.root)
	storage.Close()
	other := start(t, u.config(t), cacheserver.Options{})
	u.check(t, other, "GET", u.blob(), unavailable)
	for _, c := range []*cache{c, other} {
		if strings.Contains(c.log.String(), "secret") {
			t.Errorf("a signature is in the log:\n%s", c.log)
		}
	}
}

// An upstream that encodes content although the request does not allow it serves pulls as it does without the cache, and
// the volume has the decoded content.
func TestContentWithACoding(t *testing.T) {
	t.Parallel()
	for _, coding := range []string{"gzip", "zstd"} {
		t.Run(coding, func(t *testing.T) {
			t.Parallel()
			u := newFaulty(t, upstream.Options{})
			u.begin(upstreamFault{body: func(w http.ResponseWriter, _ *http.Request, content []byte) {
				w.Header().Set("Content-Encoding", coding)
				var encoder io.WriteCloser = gzip.NewWriter(w)
				if coding == "zstd" {
					var err error
					if encoder, err = zstd.NewWriter(w); err != nil {
						t.Error(err)
						return
					}
				}
				encoder.Write(content)
				encoder.Close()
			}})
			c := start(t, u.config(t), cacheserver.Options{})
			if err := c.pull(t.Context(), tag); err != nil {
				t.Errorf("cold: %v", err)
			}
			c.settle(t)
			u.requests()
			if err := c.pull(t.Context(), tag); err != nil {
				t.Errorf("warm: %v", err)
			}
			for _, request := range u.requests() {
				if strings.HasPrefix(request, "GET") {
					t.Errorf("warm: %s", request)
				}
			}
			checkStore(t, c.root)
		})
	}
}
