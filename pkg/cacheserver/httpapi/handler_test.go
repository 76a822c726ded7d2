// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/registry-cache/extension/pkg/cacheserver/blobs"
	"github.com/registry-cache/extension/pkg/cacheserver/download"
	"github.com/registry-cache/extension/pkg/cacheserver/manifests"
	"github.com/registry-cache/extension/pkg/cacheserver/pullthrough"
	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/oci"
)

const (
	manifest = `{"schemaVersion":2,"config":{}}`
	layer    = "0123456789"
)

var (
	manifestDigest = digest.FromString(manifest)
	layerDigest    = digest.FromString(layer)
)

// fakeCache returns the values of a test and records its last call.
type fakeCache struct {
	asked    string
	manifest *manifests.Manifest
	blob     func() blobs.Blob
	size     int64
	outcome  result.Outcome
	tags     *pullthrough.TagPage
	refers   *pullthrough.Referrers
	err      error
	// verifyErr is the result of verifications, which take verifyTime.
	verifyErr  error
	verifyTime time.Duration
	// The following fields record calls.
	part       download.Part
	served     int
	verified   []digest.Digest
	since      []time.Time // of verifications
	unreadable []error
}

func (c *fakeCache) Manifest(_ context.Context, repository string, ref oci.Reference) (*manifests.Manifest, error) {
	c.asked = "manifest " + ref.In(repository)
	return c.manifest, c.err
}

func (c *fakeCache) StatManifest(_ context.Context, repository string, ref oci.Reference) (*manifests.Manifest, error) {
	c.asked = "stat manifest " + ref.In(repository)
	return c.manifest, c.err
}

func (c *fakeCache) Blob(_ context.Context, repository string, d digest.Digest, part download.Part) (blobs.Blob, error) {
	c.part = part
	c.asked = "blob " + repository + "@" + d.String()
	if c.err != nil {
		return nil, c.err
	}
	return c.blob(), nil
}

func (c *fakeCache) VerifyBlob(ctx context.Context, d digest.Digest, since time.Time) error {
	c.verified, c.since = append(c.verified, d), append(c.since, since)
	if c.verifyTime == 0 {
		return c.verifyErr
	}
	select {
	case <-time.After(c.verifyTime):
		return c.verifyErr
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *fakeCache) ServedBlob(blobs.Blob) { c.served++ }

func (c *fakeCache) UnreadableBlob(_ blobs.Blob, err error) {
	c.unreadable = append(c.unreadable, err)
}

func (c *fakeCache) StatBlob(_ context.Context, repository string, d digest.Digest) (int64, result.Outcome, error) {
	c.asked = "stat blob " + repository + "@" + d.String()
	return c.size, c.outcome, c.err
}

func (c *fakeCache) Tags(_ context.Context, repository string, query url.Values) (*pullthrough.TagPage, error) {
	c.asked = "tags " + repository + "?" + query.Encode()
	return c.tags, c.err
}

func (c *fakeCache) Referrers(_ context.Context, repository string, d digest.Digest, query url.Values) (*pullthrough.Referrers, error) {
	c.asked = "referrers " + repository + "@" + d.String() + "?" + query.Encode()
	return c.refers, c.err
}

// answer is a response as the client receives it.
type answer struct {
	Status int
	Header map[string]string
	Body   string
}

// request sends a request to a server, so that the answer includes the headers and errors of net/http.
func request(t *testing.T, c Cache, method, path string, header ...string) (answer, error) {
	t.Helper()
	server := httptest.NewServer(New("docker.io", c, Options{}))
	defer server.Close()
	req, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := server.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	got := answer{Status: resp.StatusCode, Header: map[string]string{}, Body: string(body)}
	for name := range resp.Header {
		if name != "Date" {
			got.Header[name] = resp.Header.Get(name)
		}
	}
	return got, err
}

// headers returns the headers of every answer and those that are given.
func headers(pairs ...string) map[string]string {
	all := map[string]string{
		"Docker-Distribution-Api-Version": "registry/2.0",
		"X-Content-Type-Options":          "nosniff",
	}
	for i := 0; i < len(pairs); i += 2 {
		all[pairs[i]] = pairs[i+1]
	}
	return all
}

func blobOf(content io.ReadSeekCloser, size int64) func() blobs.Blob {
	if f, ok := content.(file); ok {
		return func() blobs.Blob { return &fileBlob{f, missOf(size)} }
	}
	return func() blobs.Blob { return &otherBlob{content, missOf(size)} }
}

// file is *os.File.
type file interface {
	io.ReadSeekCloser
	syscall.Conn
	Stat() (os.FileInfo, error)
}

// fileBlob can be sent by the kernel, otherBlob cannot.
type (
	fileBlob struct {
		file
		missOf
	}
	otherBlob struct {
		io.ReadSeekCloser
		missOf
	}
)

// missOf is a size.
type missOf int64

func (m missOf) Size() int64                      { return int64(m) }
func (missOf) Outcome() result.Outcome            { return result.Miss }
func (missOf) Shared() int64                      { return 0 }
func (missOf) Await(context.Context, int64) error { return nil }

type memory struct{ *strings.Reader }

func (memory) Close() error { return nil }

func TestAnswers(t *testing.T) {
	t.Parallel()
	manifestHeaders := headers("Content-Type", oci.MediaTypeManifest, "Content-Length", fmt.Sprint(len(manifest)), "Accept-Ranges", "bytes",
		"Docker-Content-Digest", manifestDigest.String(), "Etag", `"`+manifestDigest.String()+`"`)
	blobHeaders := headers("Content-Type", "application/octet-stream", "Content-Length", "10", "Accept-Ranges", "bytes",
		"Docker-Content-Digest", layerDigest.String(), "Etag", `"`+layerDigest.String()+`"`)
	with := func(base map[string]string, pairs ...string) map[string]string {
		changed := headers(pairs...)
		for name, value := range base {
			if _, ok := changed[name]; !ok {
				changed[name] = value
			}
		}
		return changed
	}
	stored := &manifests.Manifest{Digest: manifestDigest, MediaType: oci.MediaTypeManifest, Size: int64(len(manifest)), Content: []byte(manifest), Outcome: result.Hit}
	stale := &manifests.Manifest{Digest: manifestDigest, MediaType: oci.MediaTypeManifest, Size: int64(len(manifest)), Content: []byte(manifest), Outcome: result.Stale}
	described := &manifests.Manifest{Digest: manifestDigest, MediaType: oci.MediaTypeManifest, Size: int64(len(manifest)), Outcome: result.Miss}
	withoutRanges := with(manifestHeaders)
	delete(withoutRanges, "Accept-Ranges")
	ranged := with(blobHeaders, "Content-Length", "3", "Content-Range", "bytes 2-4/10")
	notModified := with(manifestHeaders)
	for _, name := range []string{"Content-Type", "Content-Length", "Accept-Ranges"} {
		delete(notModified, name)
	}
	blobPath := "/v2/library/alpine/blobs/" + layerDigest.String()
	tagsHeaders := func(n int, pairs ...string) map[string]string {
		return headers(append(pairs, "Content-Type", "application/json", "Content-Length", fmt.Sprint(n), "Accept-Ranges", "bytes")...)
	}
	refused := headers("Content-Type", "application/json", "Content-Range", "bytes */10")
	refusal := `{"errors":[{"code":"RANGE_INVALID","message":"the range \"bytes=10-\" is invalid or outside of the content"}]}`
	refused["Content-Length"] = fmt.Sprint(len(refusal))
	const index = `{"schemaVersion":2,"manifests":[]}`
	indexHeaders := func(pairs ...string) map[string]string {
		return headers(append(pairs, "Content-Type", oci.MediaTypeIndex, "Content-Length", fmt.Sprint(len(index)), "Accept-Ranges", "bytes")...)
	}
	referrersPath := "/v2/a/referrers/" + manifestDigest.String()

	for _, test := range []struct {
		name, method, path string
		header             []string
		cache              fakeCache
		asked              string
		want               answer
	}{
		{"ping", "GET", "/v2/", nil, fakeCache{}, "", answer{200, headers("Content-Type", "application/json", "Content-Length", "2", "Accept-Ranges", "bytes"), "{}"}},
		{"ping without slash", "HEAD", "/v2", nil, fakeCache{}, "", answer{200, headers("Content-Type", "application/json", "Content-Length", "2", "Accept-Ranges", "bytes"), ""}},
		{"manifest by tag", "GET", "/v2/library/alpine/manifests/3.13.2?ns=docker.io", nil, fakeCache{manifest: stored}, "manifest library/alpine:3.13.2", answer{200, manifestHeaders, manifest}},
		{"manifest by digest", "GET", "/v2/library/alpine/manifests/" + manifestDigest.String(), nil, fakeCache{manifest: stored}, "manifest library/alpine@" + manifestDigest.String(), answer{200, manifestHeaders, manifest}},
		{"manifest by escaped digest", "GET", "/v2/library/alpine/manifests/" + strings.Replace(manifestDigest.String(), ":", "%3A", 1), nil, fakeCache{manifest: stored}, "manifest library/alpine@" + manifestDigest.String(), answer{200, manifestHeaders, manifest}},
		{"repository named like an endpoint", "GET", "/v2/a/blobs/manifests/v1", nil, fakeCache{manifest: stored}, "manifest a/blobs:v1", answer{200, manifestHeaders, manifest}},
		{"stale manifest", "GET", "/v2/a/manifests/v1", nil, fakeCache{manifest: stale}, "manifest a:v1", answer{200, with(manifestHeaders, "Warning", `111 registry-cache "Revalidation Failed"`), manifest}},
		{"HEAD of stored manifest", "HEAD", "/v2/a/manifests/v1", nil, fakeCache{manifest: stored}, "stat manifest a:v1", answer{200, manifestHeaders, ""}},
		{"HEAD of manifest", "HEAD", "/v2/a/manifests/v1", nil, fakeCache{manifest: described}, "stat manifest a:v1", answer{200, withoutRanges, ""}},
		{"known manifest", "GET", "/v2/a/manifests/v1", []string{"If-None-Match", `"` + manifestDigest.String() + `"`}, fakeCache{manifest: stored}, "manifest a:v1", answer{304, notModified, ""}},
		{"blob", "GET", blobPath + "?ns=DOCKER.IO", nil, fakeCache{blob: blobOf(memory{strings.NewReader(layer)}, 10)}, "blob library/alpine@" + layerDigest.String(), answer{200, blobHeaders, layer}},
		{"range of blob", "GET", blobPath, []string{"Range", "bytes=2-4"}, fakeCache{blob: blobOf(memory{strings.NewReader(layer)}, 10)}, "blob library/alpine@" + layerDigest.String(), answer{206, ranged, "234"}},
		{"range behind the blob", "GET", blobPath, []string{"Range", "bytes=10-"}, fakeCache{blob: blobOf(memory{strings.NewReader(layer)}, 10)}, "blob library/alpine@" + layerDigest.String(), answer{416, refused, refusal}},
		{"tags", "GET", "/v2/a/b/tags/list?ns=docker.io", nil, fakeCache{tags: &pullthrough.TagPage{Tags: oci.NewTagList("v1", "v2")}}, "tags a/b?", answer{200, tagsHeaders(33), `{"name":"a/b","tags":["v1","v2"]}`}},
		{"no tags", "GET", "/v2/a/tags/list?n=0", nil, fakeCache{tags: &pullthrough.TagPage{}}, "tags a?n=0", answer{200, tagsHeaders(22), `{"name":"a","tags":[]}`}},
		{"page of tags", "GET", "/v2/a/tags/list?n=1&last=v1&ns=docker.io", nil,
			fakeCache{tags: &pullthrough.TagPage{Tags: oci.NewTagList("v2"), Next: url.Values{"n": {"1"}, "last": {"v2"}, "ns": {"elsewhere"}}}}, "tags a?last=v1&n=1",
			answer{200, tagsHeaders(26, "Link", `</v2/a/tags/list?last=v2&n=1&ns=docker.io>; rel="next"`), `{"name":"a","tags":["v2"]}`}},
		{"stale tags, HEAD", "HEAD", "/v2/a/tags/list", nil, fakeCache{tags: &pullthrough.TagPage{Tags: oci.NewTagList("v2"), Outcome: result.Stale}}, "tags a?",
			answer{200, tagsHeaders(26, "Warning", `111 registry-cache "Revalidation Failed"`), ""}},
		{"referrers", "GET", referrersPath + "?artifactType=a%2Fb", nil,
			fakeCache{refers: &pullthrough.Referrers{Index: []byte(index), FiltersApplied: "artifactType", Next: url.Values{"token": {"a/b"}}}}, "referrers a@" + manifestDigest.String() + "?artifactType=a%2Fb",
			answer{200, indexHeaders("Oci-Filters-Applied", "artifactType", "Link", "<"+referrersPath+`?token=a%2Fb>; rel="next"`), index}},
		{"stale referrers", "GET", referrersPath, nil, fakeCache{refers: &pullthrough.Referrers{Index: []byte(index), Outcome: result.Stale}}, "referrers a@" + manifestDigest.String() + "?",
			answer{200, indexHeaders("Warning", `111 registry-cache "Revalidation Failed"`), index}},
		{"HEAD of blob", "HEAD", blobPath, nil, fakeCache{size: 10, outcome: result.Miss}, "stat blob library/alpine@" + layerDigest.String(), answer{200, blobHeaders, ""}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := request(t, &test.cache, test.method, test.path, test.header...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
			if test.cache.asked != test.asked {
				t.Errorf("asked the cache for %q, want %q", test.cache.asked, test.asked)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	reason := func(r result.Reason) fakeCache {
		return fakeCache{err: &result.Error{Reason: r, Err: errors.New("the cause")}}
	}
	const (
		empty         = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
		blobPath      = "/v2/a/blobs/" + empty
		referrersPath = "/v2/a/referrers/" + empty
	)
	for _, test := range []struct {
		name, method, path string
		cache              fakeCache
		status             int
		code               oci.ErrorCode
		message            string
	}{
		{"other upstream", "GET", "/v2/a/manifests/v1?ns=ghcr.io", fakeCache{}, 404, oci.CodeNameUnknown, `this is a cache of docker.io, not of "ghcr.io"`},
		{"part of another one's domain", "GET", "/v2/a/manifests/v1?ns=eu.docker.io", fakeCache{}, 404, oci.CodeNameUnknown, `this is a cache of docker.io, not of "eu.docker.io"`},
		{"push", "PUT", "/v2/a/manifests/v1", fakeCache{}, 405, oci.CodeUnsupported, "pull-only registry: method not allowed"},
		{"upload", "POST", "/v2/a/blobs/uploads/", fakeCache{}, 405, oci.CodeUnsupported, "pull-only registry: method not allowed"},
		{"delete", "DELETE", blobPath, fakeCache{}, 405, oci.CodeUnsupported, "pull-only registry: method not allowed"},
		{"catalog", "GET", "/v2/_catalog", fakeCache{}, 405, oci.CodeUnsupported, "pull-only registry: it serves manifests, blobs, tags and referrers"},
		{"other than the list of tags", "GET", "/v2/a/tags/v1", fakeCache{}, 405, oci.CodeUnsupported, "pull-only registry: it serves manifests, blobs, tags and referrers"},
		{"tags of nothing", "GET", "/v2//tags/list", fakeCache{}, 400, oci.CodeNameInvalid, `invalid repository name "": use lower-case letters, digits and separators, such as library/alpine`},
		{"negative number of tags", "GET", "/v2/a/tags/list?n=-1", fakeCache{}, 400, oci.CodePageInvalid, `n is "-1": it must be the maximum number of tags`},
		{"tags without number", "GET", "/v2/a/tags/list?n=", fakeCache{}, 400, oci.CodePageInvalid, `n is "": it must be the maximum number of tags`},
		{"huge number of tags", "GET", "/v2/a/tags/list?n=2147483648", fakeCache{}, 400, oci.CodePageInvalid, `n is "2147483648": it must be the maximum number of tags`},
		{"tags of an unknown repository", "GET", "/v2/a/tags/list", reason(result.NotFound), 404, oci.CodeNameUnknown, "the cause"},
		{"tags, rate limited", "GET", "/v2/a/tags/list", reason(result.RateLimited), 503, oci.CodeTooManyRequests, "the cause"},
		{"referrers of a tag", "GET", "/v2/a/referrers/v1", fakeCache{}, 400, oci.CodeDigestInvalid, `invalid digest "v1": invalid checksum digest format`},
		{"upstream without referrers", "GET", referrersPath, reason(result.NotFound), 404, oci.CodeUnsupported, "the cause"},
		{"referrers, timed out", "GET", referrersPath, reason(result.TimedOut), 504, oci.CodeUnavailable, "the cause"},
		{"no API", "GET", "/", fakeCache{}, 405, oci.CodeUnsupported, "pull-only registry: it serves manifests, blobs, tags and referrers"},
		{"version 1", "GET", "/v1/a/manifests/v1", fakeCache{}, 405, oci.CodeUnsupported, "pull-only registry: it serves manifests, blobs, tags and referrers"},
		{"version with suffix", "GET", "/v2x/a/manifests/v1", fakeCache{}, 405, oci.CodeUnsupported, "pull-only registry: it serves manifests, blobs, tags and referrers"},
		{"upper-case repository", "GET", "/v2/A/manifests/v1", fakeCache{}, 400, oci.CodeNameInvalid, `invalid repository name "A": use lower-case letters, digits and separators, such as library/alpine`},
		{"no repository", "GET", "/v2/manifests/v1", fakeCache{}, 405, oci.CodeUnsupported, "pull-only registry: it serves manifests, blobs, tags and referrers"},
		{"escape from the repository", "GET", "/v2/a/../../etc/manifests/v1", fakeCache{}, 400, oci.CodeNameInvalid, `invalid repository name "a/../../etc": use lower-case letters, digits and separators, such as library/alpine`},
		{"escaped slashes", "GET", "/v2/a%2F..%2Fb/manifests/v1", fakeCache{}, 400, oci.CodeNameInvalid, `invalid repository name "a/../b": use lower-case letters, digits and separators, such as library/alpine`},
		{"double slash", "GET", "/v2//a/manifests/v1", fakeCache{}, 400, oci.CodeNameInvalid, `invalid repository name "/a": use lower-case letters, digits and separators, such as library/alpine`},
		{"invalid tag", "GET", "/v2/a/manifests/-v1", fakeCache{}, 404, oci.CodeManifestUnknown, `invalid tag "-v1": use up to 128 letters, digits, '_', '.' and '-'`},
		{"no tag", "GET", "/v2/a/manifests/", fakeCache{}, 404, oci.CodeManifestUnknown, `invalid tag "": use up to 128 letters, digits, '_', '.' and '-'`},
		{"short digest", "GET", "/v2/a/manifests/sha256:abc", fakeCache{}, 400, oci.CodeDigestInvalid, `invalid digest "sha256:abc": invalid checksum digest length`},
		{"blob by tag", "GET", "/v2/a/blobs/v1", fakeCache{}, 400, oci.CodeDigestInvalid, `invalid digest "v1": invalid checksum digest format`},
		{"unknown manifest", "GET", "/v2/a/manifests/v1", reason(result.NotFound), 404, oci.CodeManifestUnknown, "the cause"},
		{"unknown blob", "GET", blobPath, reason(result.NotFound), 404, oci.CodeBlobUnknown, "the cause"},
		{"unknown blob, HEAD", "HEAD", blobPath, reason(result.NotFound), 404, "", ""},
		{"denied", "GET", "/v2/a/manifests/v1", reason(result.Denied), 403, oci.CodeDenied, "the cause"},
		{"rate limited", "GET", "/v2/a/manifests/v1", reason(result.RateLimited), 503, oci.CodeTooManyRequests, "the cause"},
		{"rate limited, HEAD", "HEAD", "/v2/a/manifests/v1", reason(result.RateLimited), 503, "", ""},
		{"busy", "GET", "/v2/a/manifests/v1", reason(result.Busy), 503, oci.CodeUnavailable, "the cause"},
		{"long URL", "GET", "/v2/a/tags/list?last=" + strings.Repeat("x", maxURLSize), fakeCache{}, 414, oci.CodeUnsupported, "the URL has 4117 bytes, 4096 are allowed"},
		{"timed out", "GET", "/v2/a/manifests/v1", reason(result.TimedOut), 504, oci.CodeUnavailable, "the cause"},
		{"unavailable", "GET", blobPath, reason(result.Unavailable), 502, oci.CodeUnavailable, "the cause"},
		{"unexplained", "GET", "/v2/a/manifests/v1", fakeCache{err: errors.New("the cause")}, 502, oci.CodeUnavailable, "the cause"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := request(t, &test.cache, test.method, test.path)
			if err != nil {
				t.Fatal(err)
			}
			if got.Status != test.status || got.Header["Content-Type"] != "application/json" {
				t.Errorf("status %d, type %q, want %d", got.Status, got.Header["Content-Type"], test.status)
			}
			if test.code == "" {
				if got.Body != "" {
					t.Errorf("body %q in answer to HEAD", got.Body)
				}
				return
			}
			var body oci.ErrorBody
			if err := json.Unmarshal([]byte(got.Body), &body); err != nil {
				t.Fatalf("body %q: %v", got.Body, err)
			}
			want := oci.ErrorBody{Errors: []oci.Error{{Code: test.code, Message: test.message}}}
			if diff := cmp.Diff(want, body); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

// breaking fails behind its content.
type breaking struct {
	content *strings.Reader
	size    int64
}

func (b *breaking) Read(p []byte) (int, error) {
	n, err := b.content.Read(p)
	if err == io.EOF {
		err = errors.New("the upstream broke off")
	}
	return n, err
}

func (b *breaking) Seek(offset int64, whence int) (int64, error) {
	if whence == io.SeekEnd {
		return b.size, nil
	}
	return b.content.Seek(offset, whence)
}

func (b *breaking) Close() error { return nil }

func TestBrokenBodyNeverLooksComplete(t *testing.T) {
	t.Parallel()
	path := "/v2/a/blobs/" + layerDigest.String()
	sent := strings.Repeat(layer, 1<<16) // more than the server keeps back
	for _, size := range []int64{int64(len(sent)) + 1, -1} {
		content := &breaking{strings.NewReader(sent), size}
		got, err := request(t, &fakeCache{blob: blobOf(content, size)}, "GET", path)
		if err == nil || got.Status != 200 || !strings.HasPrefix(sent, got.Body) {
			t.Errorf("size %d: status %d, %d bytes, %v, want a part of the body and an error", size, got.Status, len(got.Body), err)
		}
	}
}

func TestBlobOfUnknownSize(t *testing.T) {
	t.Parallel()
	path := "/v2/a/blobs/" + layerDigest.String()
	got, err := request(t, &fakeCache{blob: blobOf(memory{strings.NewReader(layer)}, -1)}, "GET", path, "Range", "bytes=2-4")
	if err != nil || got.Status != 200 || got.Body != layer {
		t.Errorf("%+v, %v", got, err)
	}
}

// Several chunks of writeChunk go through ReadFrom.
func TestLargeFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "blob")
	content := bytes.Repeat([]byte(layer), writeChunk/4)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		header string
		want   []byte
	}{
		{"", content},
		{fmt.Sprintf("bytes=7-%d", 2*writeChunk), content[7 : 2*writeChunk+1]},
	} {
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := request(t, &fakeCache{blob: blobOf(file, int64(len(content)))}, "GET", "/v2/a/blobs/"+layerDigest.String(), "Range", test.header)
		if err != nil || got.Body != string(test.want) {
			t.Errorf("range %q: status %d, %d bytes, %v", test.header, got.Status, len(got.Body), err)
		}
	}
}

func TestRecord(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	metrics := prometheus.NewRegistry()
	cache := &fakeCache{
		manifest: &manifests.Manifest{Digest: manifestDigest, Content: []byte(manifest), Outcome: result.Stale},
		blob:     blobOf(memory{strings.NewReader(layer)}, 10),
	}
	h := New("docker.io", cache, Options{Logger: slog.New(slog.NewJSONHandler(&log, nil)), Registerer: metrics})
	for _, path := range []string{"/v2/", "/v2/a/manifests/v1?ns=docker.io&secret=x", "/v2/a/blobs/" + layerDigest.String(), "/v2/a/blobs/x"} {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "GET", path, nil))
	}
	type line struct {
		Msg, Method, Path, Outcome, Error string
		Status, Bytes                     int
	}
	var got []line
	for decoder := json.NewDecoder(&log); decoder.More(); {
		var l line
		if err := decoder.Decode(&l); err != nil {
			t.Fatal(err)
		}
		if l.Outcome == outcomeError {
			l.Bytes = 0 // depends on a message
		}
		got = append(got, l)
	}
	want := []line{ // no line for the probe
		{Msg: "Served request", Method: "GET", Path: "/v2/a/manifests/v1", Status: 200, Outcome: "stale", Bytes: len(manifest)},
		{Msg: "Served request", Method: "GET", Path: "/v2/a/blobs/" + layerDigest.String(), Status: 200, Outcome: "miss", Bytes: 10},
		{Msg: "Served request", Method: "GET", Path: "/v2/a/blobs/x", Status: 400, Outcome: "error", Error: `invalid digest "x": invalid checksum digest format`},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("log: -want +got\n%s", diff)
	}
	rec := httptest.NewRecorder()
	promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	for _, line := range []string{
		`registry_cache_requests_total{kind="manifest",outcome="stale"} 1`,
		`registry_cache_requests_total{kind="blob",outcome="miss"} 1`,
		`registry_cache_requests_total{kind="blob",outcome="error"} 1`,
	} {
		if !strings.Contains(rec.Body.String(), line+"\n") {
			t.Errorf("the metrics lack %s:\n%s", line, rec.Body)
		}
	}
	if strings.Contains(rec.Body.String(), `kind="ping"`) {
		t.Error("probes are counted")
	}
}

func FuzzParsePath(f *testing.F) {
	f.Add("/v2/library/alpine/manifests/3.13.2")
	f.Add("/v2/a/blobs/manifests/v1")
	f.Fuzz(func(t *testing.T, path string) {
		got := parsePath(path)
		if got.kind == kindManifest && path != "/v2/"+got.repository+"/manifests/"+got.reference {
			t.Errorf("parsePath(%q) = %+v", path, got)
		}
	})
}
