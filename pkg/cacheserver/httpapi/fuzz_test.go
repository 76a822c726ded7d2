// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/registry-cache/extension/pkg/cacheserver/manifests"
	"github.com/registry-cache/extension/pkg/cacheserver/pullthrough"
	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/oci"
)

func FuzzRequest(f *testing.F) {
	for _, target := range []string{
		"/v2/", "/v2/library/alpine/manifests/3.13.2?ns=docker.io", "/v2/a/b/blobs/" + layerDigest.String(), "/v2/a/tags/list?n=3&last=v%261&ns=docker.io",
		"/v2/a/referrers/" + manifestDigest.String() + "?artifactType=a%2Fb", "/v2/a%2F..%2Fb/manifests/v1", "/v2//../%00/blobs/x", "/v2/a/tags/list?n=0;n=1&n=-1", "*", "/v2/_catalog",
		"http://elsewhere/v2/a/manifests/v1",
	} {
		f.Add("GET", target)
		f.Add("HEAD", target)
	}
	f.Add("PUT", "/v2/a/manifests/v1")
	f.Fuzz(func(t *testing.T, method, target string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(method + " " + target + " HTTP/1.1\r\nHost: cache\r\n\r\n")))
		if err != nil {
			return
		}
		cache := &fakeCache{
			manifest: &manifests.Manifest{Digest: manifestDigest, MediaType: oci.MediaTypeManifest, Size: int64(len(manifest)), Content: []byte(manifest), Outcome: result.Hit},
			blob:     blobOf(memory{strings.NewReader(layer)}, int64(len(layer))),
			tags:     &pullthrough.TagPage{Tags: oci.NewTagList("v1"), Next: r.URL.Query()},
			refers:   &pullthrough.Referrers{Index: []byte(`{}`), Next: url.Values{"token": {target}}},
		}
		rec := httptest.NewRecorder()
		New("docker.io", cache, Options{}).ServeHTTP(rec, r)
		switch rec.Code {
		case 200, 400, 404, 405, 414:
		default:
			t.Errorf("%s %q: %d", method, target, rec.Code)
		}
		if cache.asked != "" {
			_, name, _ := strings.Cut(strings.TrimPrefix(cache.asked, "stat "), " ")
			name, _, _ = strings.Cut(name, "@")
			name, _, _ = strings.Cut(name, "?")
			name, _, _ = strings.Cut(name, ":")
			if err := oci.ValidateRepository(name); err != nil {
				t.Errorf("%s %q: asked the cache for %q", method, target, cache.asked)
			}
		}
		if link := rec.Header().Get("Link"); link != "" && (!strings.HasPrefix(link, "</v2/") || !strings.HasSuffix(link, `>; rel="next"`) || strings.ContainsAny(link[1:len(link)-len(`>; rel="next"`)], "<>\r\n\"")) {
			t.Errorf("%s %q: link %q", method, target, link)
		}
		if rec.Code >= 400 && r.Method != http.MethodHead {
			var body oci.ErrorBody
			if err := json.Unmarshal(rec.Body.Bytes(), &body); err != nil || len(body.Errors) != 1 || body.Errors[0].Code == "" {
				t.Errorf("%s %q: %d %q, %v", method, target, rec.Code, rec.Body, err)
			}
		}
	})
}

func FuzzRange(f *testing.F) {
	for _, header := range []string{"bytes=0-", "bytes=2-4", "bytes=-1", "bytes=9-9", "bytes=10-", "bytes=0-0,2-3", "bytes=4-2", "bytes=a-b", "items=0-1", "bytes=0-18446744073709551616", "bytes=-", "bytes= 1 - 2 ", "bytes=-0", "bytes= -00", "bytes=- 0", "bytes=0-0,-0", "bytes=+5-6", "bytes=0-1,", "bytes=,-2"} {
		f.Add(header)
	}
	f.Fuzz(func(t *testing.T, header string) {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/v2/a/blobs/"+layerDigest.String(), nil)
		r.Header.Set("Range", header)
		rec := httptest.NewRecorder()
		New("docker.io", &fakeCache{blob: blobOf(memory{strings.NewReader(layer)}, int64(len(layer)))}, Options{}).ServeHTTP(rec, r)
		switch rec.Code {
		case 200:
			if rec.Body.String() != layer {
				t.Errorf("range %q: 200 with %q", header, rec.Body)
			}
		case 206:
			var first, last, size int
			n, err := fmt.Sscanf(rec.Header().Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &size)
			if n != 3 || err != nil || size != len(layer) || first > last || last >= size || rec.Body.String() != layer[first:last+1] {
				t.Errorf("range %q: 206 %q with %q", header, rec.Header().Get("Content-Range"), rec.Body)
			}
		case 416:
			var body oci.ErrorBody
			if err := json.Unmarshal(rec.Body.Bytes(), &body); err != nil || len(body.Errors) != 1 || body.Errors[0].Code != oci.CodeRangeInvalid {
				t.Errorf("range %q: 416 with %q", header, rec.Body)
			}
		default:
			t.Errorf("range %q: %d", header, rec.Code)
		}
	})
}
