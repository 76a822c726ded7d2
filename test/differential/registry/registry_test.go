// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"io"
	"net/http"
	"strconv"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/test/differential/scenario"
)

func start(t *testing.T, quirks string) *Registry {
	t.Helper()
	s, err := scenario.Parse(quirks)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Start(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// answer is a complete response.
type answer struct {
	status int
	header http.Header
	length int64 // -1 if unknown
	body   []byte
}

// do sends a request with header fields, given as pairs of name and value.
func do(t *testing.T, r *Registry, method, path string, header ...string) answer {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), method, r.URL()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		q.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(q)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, resp.ContentLength, body}
}

// layerPath returns the path of the layer in the first repository.
func layerPath(r *Registry) string {
	return "/v2/team-0/app/blobs/" + r.images[r.repositories[0]][0].pulled[1].digest.String()
}

// TestBlobHead tests the quirks of requests that containerd does not send for a tag. The cache does.
func TestBlobHead(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		quirks string
		status int
		length int64
	}{
		{"", 200, defaultLayerSize},
		{"status@blob-head:404 always", 404, -1},
		{"no-length@blob-head", 200, -1},
		{"redirect@blob:307", 307, -1},
	} {
		r := start(t, tc.quirks)
		resp := do(t, r, http.MethodHead, layerPath(r))
		if resp.status != tc.status || resp.length != tc.length {
			t.Errorf("%q: status %d, length %d, want %d, %d", tc.quirks, resp.status, resp.length, tc.status, tc.length)
		}
		if resp := do(t, r, http.MethodGet, layerPath(r)); tc.status != 307 && resp.status != 200 {
			t.Errorf("%q: GET returns %d", tc.quirks, resp.status)
		}
	}
}

func TestRanges(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		value  string
		status int
		bytes  int
		header string
	}{
		{"bytes=0-", 206, 1000, "bytes 0-999/1000"},
		{"bytes=10-19", 206, 10, "bytes 10-19/1000"},
		{"bytes=990-5000", 206, 10, "bytes 990-999/1000"},
		{"bytes=-5", 206, 5, "bytes 995-999/1000"},
		{"bytes=1000-", 416, -1, "bytes */1000"},
		{"bytes=5-2", 416, -1, "bytes */1000"},
	} {
		r := start(t, "")
		whole := do(t, r, http.MethodGet, layerPath(r)).body
		resp := do(t, r, http.MethodGet, layerPath(r), "Range", tc.value)
		if resp.status != tc.status || resp.header.Get("Content-Range") != tc.header || tc.bytes >= 0 && len(resp.body) != tc.bytes {
			t.Errorf("%s: %d, %q, %d bytes", tc.value, resp.status, resp.header.Get("Content-Range"), len(resp.body))
		}
		if tc.value == "bytes=10-19" && string(resp.body) != string(whole[10:20]) {
			t.Errorf("%s: %q, want %q", tc.value, resp.body, whole[10:20])
		}
	}
}

// TestContentEncoding tests the negotiation, and that a decoded body is the content.
func TestContentEncoding(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ quirks, accept, want string }{
		{"gzip@blob", "", "gzip"},
		{"gzip@blob", "identity", ""},
		{"gzip@blob", "zstd, gzip", "gzip"},
		{"zstd@blob", "gzip", ""},
		{"gzip@blob forced-encoding", "identity", "gzip"},
		{"gzip@manifest", "", ""},
	} {
		r := start(t, tc.quirks)
		header := []string{"Accept-Encoding", tc.accept}
		if tc.accept == "" {
			header = nil
		}
		transport := &http.Transport{DisableCompression: true}
		q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.URL()+layerPath(r), nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			q.Header.Set(header[i], header[i+1])
		}
		resp, err := transport.RoundTrip(q)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		transport.CloseIdleConnections()
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Header.Get("Content-Encoding"); got != tc.want || resp.Header.Get("Content-Length") != strconv.Itoa(len(body)) {
			t.Errorf("%q with Accept-Encoding %q: %q, want %q", tc.quirks, tc.accept, got, tc.want)
		}
		if tc.want == "" && digest.FromBytes(body) != r.images[r.repositories[0]][0].pulled[1].digest {
			t.Errorf("%q with Accept-Encoding %q: wrong content", tc.quirks, tc.accept)
		}
	}
}

// TestRounds tests the content that changes between the rounds.
func TestRounds(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		quirks       string
		moved, still bool // the tag has moved, and the old manifest still exists
	}{
		{"", false, true},
		{"tag-moves", true, true},
		{"tag-moves old-deleted", true, false},
	} {
		r := start(t, tc.quirks)
		const path = "/v2/team-0/app/manifests/"
		before := do(t, r, http.MethodHead, path+Tag)
		r.NextRound()
		after := do(t, r, http.MethodHead, path+Tag)
		old := before.header.Get("Docker-Content-Digest")
		if moved := after.header.Get("Docker-Content-Digest") != old; moved != tc.moved {
			t.Errorf("%q: moved: %t", tc.quirks, moved)
		}
		resp := do(t, r, http.MethodGet, path+old)
		if still := resp.status == http.StatusOK; still != tc.still {
			t.Errorf("%q: the old manifest: %d", tc.quirks, resp.status)
		}
	}
}

// TestImportOnManifest tests that a GET request for a manifest imports the blobs for one round, and a HEAD request does
// not.
func TestImportOnManifest(t *testing.T) {
	t.Parallel()
	r := start(t, "import-on-manifest")
	status := func(method, path string) int {
		resp := do(t, r, method, path)
		return resp.status
	}
	const manifest = "/v2/team-0/app/manifests/" + Tag
	for round := range Rounds {
		got := []int{
			status(http.MethodGet, layerPath(r)), status(http.MethodHead, manifest), status(http.MethodGet, layerPath(r)),
			status(http.MethodGet, manifest), status(http.MethodGet, layerPath(r)),
		}
		for i, want := range []int{404, 200, 404, 200, 200} {
			if got[i] != want {
				t.Errorf("round %d: %d", round, got)
				break
			}
		}
		r.NextRound()
	}
}

// TestTokenUses tests that a token is valid for one repository and the number of requests of the quirk.
func TestTokenUses(t *testing.T) {
	t.Parallel()
	r := start(t, "repositories:2 bearer token-uses:2 refused-error")
	r.tokens["x"] = &token{scopes: []string{scopeOf("team-0/app")}}
	for i, want := range []int{200, 401, 200, 401} {
		repository := []string{"team-0", "team-1", "team-0", "team-0"}[i]
		resp := do(t, r, http.MethodHead, "/v2/"+repository+"/app/manifests/"+Tag, "Authorization", "Bearer x")
		if resp.status != want {
			t.Errorf("request %d: %d, want %d", i, resp.status, want)
		}
	}
}
