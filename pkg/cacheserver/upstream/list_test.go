// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/oci"
)

func TestTags(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, body string
		links      []string
		want       *upstream.TagPage
		err        string
	}{
		{"all", `{"name":"x","tags":["b","a"]}`, nil, &upstream.TagPage{Tags: oci.NewTagList("b", "a")}, ""},
		{"none", `{"name":"x","tags":null}`, nil, &upstream.TagPage{}, ""},
		{"path", `{"tags":["b"]}`, []string{`</v2/x/tags/list?n=1&last=b>; rel="next"`}, &upstream.TagPage{Tags: oci.NewTagList("b"), Next: url.Values{"n": {"1"}, "last": {"b"}}}, ""},
		{"other host", `{}`, []string{`<https://elsewhere.example/?token=a%2Fb>; title="x"; rel=next`}, &upstream.TagPage{Next: url.Values{"token": {"a/b"}}}, ""},
		{"second of two links", `{}`, []string{`</a?b=1>; rel="prev", </a?b=2>; Rel="last NEXT"`}, &upstream.TagPage{Next: url.Values{"b": {"2"}}}, ""},
		{"second header", `{}`, []string{`</a?b=1>; rel="prev"`, `<?b=2>; rel="next"`}, &upstream.TagPage{Next: url.Values{"b": {"2"}}}, ""},
		{"other relation", `{}`, []string{`</a?b=1>; rel="nextish"`}, &upstream.TagPage{}, ""},
		{"no relation", `{}`, []string{`</a?b=1>`}, &upstream.TagPage{}, ""},
		{"no query", `{}`, []string{`</a>; rel="next"`}, &upstream.TagPage{}, ""},
		{"broken link", `{}`, []string{`</a?b=1; rel="next"`, `b`, `,,<`}, &upstream.TagPage{}, ""},
		{"link without URL", `{}`, []string{`<:>; rel="next"`}, nil, "the link to the next page is no URL"},
		{"link with a broken query", `{}`, []string{`<?a;b>; rel="next"`}, nil, "the link to the next page has a query that cannot be read"},
		{"long link", `{}`, []string{`<?b=` + strings.Repeat("x", 2<<10) + `>; rel="next"`}, nil, "the link to the next page has more than 2048 bytes"},
		{"no JSON", `<html>`, nil, nil, "invalid list of tags: invalid character '<' looking for beginning of value"},
		{"other JSON", `{"tags":{"a":1}}`, nil, nil, "invalid list of tags: must be a list"},
		{"long body", `{"tags":["` + strings.Repeat("x", oci.MaxManifestSize) + `"]}`, nil, nil, "the answer has more than 4194304 bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Pointer[url.URL]
			r := serve(t, func(w http.ResponseWriter, req *http.Request) {
				asked.Store(req.URL)
				w.Header()["Link"] = test.links
				io.WriteString(w, test.body)
			})
			got, err := r.client(t, upstream.Options{}).Tags(t.Context(), repository, url.Values{"n": {"1"}, "last": {"a&b"}})
			if want := "/v2/library/alpine/tags/list?last=a%26b&n=1"; asked.Load().String() != want {
				t.Errorf("asked for %s, want %s", asked.Load(), want)
			}
			if test.err != "" {
				wantListError(t, err, "GET library/alpine/tags/list: "+test.err)
				return
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(oci.TagList{})); err != nil || diff != "" {
				t.Errorf("%v, -want +got\n%s", err, diff)
			}
		})
	}
}

func TestReferrers(t *testing.T) {
	t.Parallel()
	const index = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`
	for _, test := range []struct {
		name, body string
		noIndex    bool
		err        string
	}{
		{"index", index, false, ""},
		{"index without media type", `{"schemaVersion":2,"manifests":[]}`, false, ""},
		{"web page", `<html>`, true, "the answer is no OCI index"},
		{"manifest", manifest, true, "the answer is no OCI index"},
		{"Docker's list", `{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json","manifests":[]}`, true, "the answer is no OCI index"},
		{"long body", strings.Repeat(" ", oci.MaxManifestSize) + index, false, "the answer has more than 4194304 bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := serve(t, func(w http.ResponseWriter, req *http.Request) {
				if req.Header.Get("Accept") != oci.MediaTypeIndex || req.URL.RawQuery != "artifactType=a%2Fb" {
					w.WriteHeader(http.StatusTeapot)
				}
				w.Header().Set("OCI-Filters-Applied", "artifactType")
				w.Header().Set("Link", `<?token=x>; rel="next"`)
				io.WriteString(w, test.body)
			})
			got, err := r.client(t, upstream.Options{}).Referrers(t.Context(), repository, manifestDigest, url.Values{"artifactType": {"a/b"}})
			if errors.Is(err, upstream.ErrNoIndex) != test.noIndex {
				t.Errorf("%v, want ErrNoIndex = %t", err, test.noIndex)
			}
			if test.err != "" {
				wantListError(t, err, "GET library/alpine/referrers/"+manifestDigest.String()+": "+test.err)
				return
			}
			want := &upstream.Referrers{Index: []byte(test.body), FiltersApplied: "artifactType", Next: url.Values{"token": {"x"}}}
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("%v, -want +got\n%s", err, diff)
			}
		})
	}
}

func wantListError(t *testing.T, err error, text string) {
	t.Helper()
	if _, ok := errors.AsType[*upstream.Error](err); !ok || err.Error() != text {
		t.Errorf("got %T %v\nwant %s", err, err, text)
	}
}
