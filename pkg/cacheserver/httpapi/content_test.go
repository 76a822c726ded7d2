// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/registry-cache/extension/pkg/cacheserver/blobs"
	"github.com/registry-cache/extension/pkg/cacheserver/download"
)

func TestOneRange(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]string{
		"":                 "",
		"bytes=2-4":        "bytes=2-4",
		"bytes=2-":         "bytes=2-",
		"bytes=-2":         "bytes=-2",
		"bytes=0-1,":       "bytes=0-1",
		"bytes= , ,-2 ,\t": "bytes=-2",
		"bytes=0-0,2-3":    "",
		"bytes=+5-6":       "bytes=invalid",
		"items=0-1":        "",
		"bytes=0--0":       "bytes=invalid",
	} {
		if got := oneRange(header); got != want {
			t.Errorf("%q: got %q, want %q", header, got, want)
		}
	}
}

// A range for other content is ignored, so that the cache requests the bytes that it sends.
func TestRangeOfOtherContent(t *testing.T) {
	t.Parallel()
	for condition, want := range map[string]download.Part{
		"":                                  {First: 3},
		`"` + layerDigest.String() + `"`:    {First: 3},
		`"` + manifestDigest.String() + `"`: {},
		"Sun, 29 Nov 2026 10:00:00 GMT":     {},
	} {
		cache := &fakeCache{blob: func() blobs.Blob {
			return &hitBlob{memory{strings.NewReader(layer)}, hitOf{missOf(len(layer))}}
		}}
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/v2/a/blobs/"+layerDigest.String(), nil)
		r.Header.Set("Range", "bytes=3-")
		if condition != "" {
			r.Header.Set("If-Range", condition)
		}
		rec := httptest.NewRecorder()
		New("docker.io", cache, Options{}).ServeHTTP(rec, r)
		if cache.part != want {
			t.Errorf("If-Range %q: the cache must provide %+v, want %+v", condition, cache.part, want)
		}
		if got := rec.Body.String(); got != layer[want.First:] || rec.Code == http.StatusOK != (want.First == 0) {
			t.Errorf("If-Range %q: status %d, %q", condition, rec.Code, got)
		}
	}
}
