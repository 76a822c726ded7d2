// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/oci"
)

// answering is a network with the same response to each request, except those to a token server.
type answering struct {
	status   int
	header   http.Header
	body     string
	token    string
	requests int
}

func (a *answering) RoundTrip(r *http.Request) (*http.Response, error) {
	a.requests++
	resp := &http.Response{StatusCode: http.StatusOK, ProtoMajor: 1, ProtoMinor: 1, Request: r, Header: http.Header{}, ContentLength: -1}
	body := a.token
	if strings.HasPrefix(r.URL.Path, "/v2/") {
		resp.StatusCode, resp.Header, body = a.status, a.header.Clone(), a.body
	}
	if r.Method == http.MethodHead {
		body = ""
	}
	resp.Body = io.NopCloser(strings.NewReader(body))
	return resp, nil
}

func fuzzedClient(t testing.TB, network *answering) *Client {
	c, err := New("https://registry.example.com", Options{})
	if err != nil {
		t.Fatal(err)
	}
	c.responses.next = network
	return c
}

const fuzzedRepository = "library/alpine"

// Manifests, indexes and lists, with their headers.
func FuzzAnswer(f *testing.F) {
	const (
		manifest = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}`
		index    = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"digest":"x"}]}`
	)
	f.Add(200, manifest, oci.MediaTypeManifest, digest.FromString(manifest).String(), "")
	f.Add(200, manifest, oci.MediaTypeManifest, digest.FromString(index).String(), "")
	f.Add(200, index, oci.MediaTypeIndex, "", `</v2/a/tags/list?n=1&last=b>; rel="next", <x>; rel=prev`)
	f.Add(200, `{"name":"a","tags":["v1",null,"v2"]}`, "application/json", "sha512:00", `<https://elsewhere/?a=%zz>; rel="next"`)
	f.Add(404, `{"errors":[]}`, "application/json", "", "<<>>,,;;")
	f.Add(206, `{"schemaVersion":2,"manifests":null,"config":null}`, "", "sha256:", "")
	f.Fuzz(func(t *testing.T, status int, body, mediaType, announced, link string) {
		if status < 200 || status > 599 || status/100 == 3 {
			return
		}
		c := fuzzedClient(t, &answering{status: status, body: body, header: http.Header{"Content-Type": {mediaType}, "Docker-Content-Digest": {announced}, "Link": {link}}})
		subject := digest.FromString(manifest)
		for _, ref := range []oci.Reference{{Tag: "v1"}, {Digest: subject}} {
			m, err := c.Manifest(t.Context(), fuzzedRepository, ref)
			if err == nil && (m.Digest != digest.FromBytes(m.Content) || string(m.Content) != body || ref.Digest != "" && m.Digest != ref.Digest) {
				t.Errorf("%s: %+v", ref, m)
			}
			checkFuzzed(t, err)
			described, err := c.HeadManifest(t.Context(), fuzzedRepository, ref)
			if err == nil && described.Digest != "" && described.Digest.Validate() != nil {
				t.Errorf("%s: %+v", ref, described)
			}
			checkFuzzed(t, err)
		}
		tags, err := c.Tags(t.Context(), fuzzedRepository, nil)
		if err == nil && len(tags.Next.Encode()) > maxNextSize {
			t.Errorf("the next page is behind %d bytes", len(tags.Next.Encode()))
		}
		checkFuzzed(t, err)
		referrers, err := c.Referrers(t.Context(), fuzzedRepository, subject, nil)
		if err == nil {
			if known, err := oci.ManifestMediaType(referrers.Index); known != oci.MediaTypeIndex || err != nil {
				t.Errorf("referrers %q: %s, %v", referrers.Index, known, err)
			}
		}
		checkFuzzed(t, err)
	})
}

func checkFuzzed(t *testing.T, err error) {
	t.Helper()
	if _, known := errors.AsType[*Error](err); err != nil && !known {
		t.Errorf("an error of type %T: %v", err, err)
	}
}

func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://registry.example.com/token",service="s",scope="repository:library/alpine:pull"`, `{"token":"secret","expires_in":60}`)
	f.Add(`bearer realm="https://elsewhere.example.org/token"`, `{"access_token":"secret"}`)
	f.Add(`Basic realm="x"`, "")
	f.Add(`Bearer realm="::",error="insufficient_scope"`, `{"token":""}`)
	f.Add(`Negotiate, Bearer realm="https://registry.example.com/a,b",scope="a b"`, `{"token":"secret","expires_in":-1}`)
	f.Add(`Bearer`, `<html>secret`)
	f.Fuzz(func(t *testing.T, challenge, token string) {
		network := &answering{status: http.StatusUnauthorized, header: http.Header{"Www-Authenticate": {challenge}}, token: token}
		c := fuzzedClient(t, network)
		for range 2 {
			_, err := c.HeadManifest(t.Context(), fuzzedRepository, oci.Reference{Tag: "v1"})
			if err == nil {
				t.Error("there is a manifest")
			}
			checkFuzzed(t, err)
			if strings.Contains(token, "secret") && err != nil && strings.Contains(err.Error(), "secret") && !strings.Contains(challenge, "secret") {
				t.Errorf("the error quotes the token: %v", err)
			}
		}
		if network.requests > 12 {
			t.Errorf("%d requests for two questions", network.requests)
		}
	})
}
