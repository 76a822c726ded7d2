// SPDX-License-Identifier: Apache-2.0

package scenario

import "slices"

// Kind describes all quirks of one name.
type Kind struct {
	Name string
	// Effect is a description for readers of a test report.
	Effect string
	// Targets are the permitted targets. Empty: a quirk of this kind has no target.
	Targets []Target
	// Numbers are the numbers that Generate uses, from the least to the most severe or most unusual. Empty: a quirk of
	// this kind has no number.
	Numbers []int
	// Exact indicates that the order of Numbers has no meaning, for example for status codes.
	Exact bool
	// Group is the name of a set of kinds of which a scenario contains at most one per target. Empty: no such set.
	Group string
	// Requires are names of kinds. A scenario with this kind must contain at least one of them.
	Requires []string

	order int // index in all
}

// Kinds returns all kinds, in the order in which the quirks of a scenario are sorted.
func Kinds() []Kind { return slices.Clone(all) }

// severity returns the index of the least severe element of Numbers that is at least as severe as n.
func (k Kind) severity(n int) int {
	if i := slices.Index(k.Numbers, n); i >= 0 {
		return i
	}
	ascending := len(k.Numbers) < 2 || k.Numbers[0] < k.Numbers[1]
	for i, number := range k.Numbers {
		if ascending && number >= n || !ascending && number <= n {
			return i
		}
	}
	return len(k.Numbers)
}

var (
	bearer     = []string{"bearer"}
	content    = []Target{Manifest, Blob}
	redirected = []string{"redirect"}
	faults     = []string{"status", "cut", "reset"}
)

// all contains every kind. Unless noted otherwise, durations are in milliseconds, sizes in bytes and rates in bytes per
// second. "The first requests" are counted for each method and path, and without requests that lack authorization.
var all = []Kind{
	// The image and the pulls.
	{Name: "layers", Effect: "the image has this number of layers instead of one", Numbers: []int{2, 3, 4}},
	{Name: "layer-size", Effect: "the size of each layer instead of 1000", Numbers: []int{3000, 40_000, 300_000, 1_000_000}},
	{Name: "index", Effect: "the tag refers to an index of two platforms"},
	{Name: "docker-types", Effect: "media types of Docker instead of OCI"},
	{Name: "by-digest", Effect: "pulls by digest instead of tag"},
	{Name: "repositories", Effect: "each round pulls from this number of repositories instead of one", Numbers: []int{2, 3}},
	{Name: "shared-layer", Effect: "the images of all repositories have the same first layer", Requires: []string{"repositories"}},
	{Name: "credentials", Effect: "client and cache have valid credentials, without which the registry refuses access"},
	{Name: "revalidate-always", Effect: "the cache has tags.revalidateAfter 0s"},
	{Name: "resolve-first", Effect: "the first pulls only resolve the reference", Group: "first"},
	{Name: "manifests-first", Effect: "the first pulls fetch only manifests", Group: "first"},
	{Name: "abort-first", Effect: "the first pulls are cancelled after this time", Numbers: []int{500, 1000}, Group: "first"},

	// Transport and authentication.
	{Name: "tls", Effect: "the registry and its token server use https"},
	{Name: "basic", Effect: "challenge for Basic authentication", Group: "scheme", Requires: []string{"credentials"}},
	{Name: "bearer", Effect: "challenge for Bearer authentication", Group: "scheme"},
	{Name: "basic-before", Effect: "a challenge for Basic in a header before the challenge for Bearer", Group: "basic", Requires: bearer},
	{Name: "basic-after", Effect: "a challenge for Basic in a header after the challenge for Bearer", Group: "basic", Requires: bearer},
	{Name: "one-header", Effect: "both challenges are in one header", Requires: []string{"basic-before", "basic-after"}},
	{Name: "lower-case-scheme", Effect: "the scheme of a challenge has lower-case letters", Requires: []string{"basic", "bearer"}},
	{Name: "realm-port", Effect: "the realm has the address of the registry and another port, instead of a host name", Requires: bearer},
	{Name: "realm-per-repository", Effect: "each repository has its own realm, which refuses other repositories", Requires: bearer},
	{Name: "no-scope", Effect: "the challenge has no scope", Requires: bearer},
	{Name: "access-token", Effect: "the token is in the field access_token only", Requires: bearer},
	{Name: "no-token-post", Effect: "the token server answers POST with this status", Numbers: []int{404, 405}, Exact: true, Requires: bearer},
	{Name: "expires-in", Effect: "the token response contains this number of seconds", Numbers: []int{3600, 60, 1, 0}, Requires: bearer},
	{Name: "token-uses", Effect: "a token is refused after this number of requests", Numbers: []int{10, 5, 3, 2}, Requires: bearer},
	{Name: "token-lifetime", Effect: "a token is refused after this time", Numbers: []int{2000, 300, 100}, Requires: bearer},
	{Name: "tokens-revoked", Effect: "tokens of the first pulls are refused for the second pulls", Requires: bearer},
	{Name: "refused-bare", Effect: "a refused token is answered by 401 without challenge", Group: "refused", Requires: bearer},
	{Name: "refused-403", Effect: "a refused token is answered by 403", Group: "refused", Requires: bearer},
	{Name: "refused-error", Effect: `the challenge for a refused token contains error="invalid_token"`, Group: "refused", Requires: bearer},
	{Name: "refused-realm", Effect: "the challenge for a refused token names a realm that refuses anonymous clients", Group: "refused", Requires: bearer},

	// Redirects. By default the target is another host name.
	{Name: "redirect", Effect: "content is redirected with this status", Targets: []Target{Head, Manifest, Blob}, Numbers: []int{307, 302, 308, 301, 303}},
	{Name: "redirect-relative", Effect: "the Location is a path of the same host", Group: "location", Requires: redirected},
	{Name: "redirect-port", Effect: "the target has the address of the registry and another port", Group: "location", Requires: redirected},
	{Name: "redirect-address", Effect: "the target has another IP address", Group: "location", Requires: redirected},
	{Name: "redirect-chain", Effect: "this number of further redirects", Numbers: []int{1, 4, 8}, Requires: redirected},
	{Name: "redirect-challenge", Effect: "the target has its own Bearer challenge", Requires: redirected},
	{Name: "redirect-single-use", Effect: "the target answers each redirect once, then 403", Requires: redirected},
	{Name: "redirect-strict", Effect: "the target answers 400 to requests with an Authorization header that it did not request", Requires: redirected},
	{Name: "redirect-http", Effect: "the target uses http although the registry uses https", Requires: []string{"tls"}},

	// Status codes and delays.
	{Name: "status", Effect: "the first request is answered by this status", Targets: []Target{Head, Manifest, BlobHead, Blob, Token}, Numbers: []int{503, 500, 502, 429, 404, 403, 405}, Exact: true},
	{Name: "retry-after", Effect: "these responses contain Retry-After with this number of seconds", Numbers: []int{1, 60}, Requires: []string{"status"}},
	{Name: "html-error", Effect: "these responses have a body of HTML", Group: "error-body", Requires: []string{"status"}},
	{Name: "trickling-error", Effect: "these responses have a body of one byte per second", Group: "error-body", Requires: []string{"status"}},
	{Name: "pause", Effect: "a pause before the headers", Targets: []Target{Head, Manifest, Blob, Token}, Numbers: []int{100, 500, 1500, 6000}},
	{Name: "pause-body", Effect: "a pause in the middle of the body", Targets: content, Numbers: []int{100, 500, 1500, 6000}},
	{Name: "rate", Effect: "the rate of each connection", Targets: content, Numbers: []int{1_000_000, 200_000, 50_000}},
	{Name: "slow-first", Effect: "the rate of the first request", Targets: []Target{Blob}, Numbers: []int{10_000, 1_000}},

	// Interrupted connections.
	{Name: "cut", Effect: "the connection is closed after this number of bytes of the first response", Targets: content, Numbers: []int{20_000, 2000, 500, 1, 0}, Group: "break"},
	{Name: "reset", Effect: "the connection is reset after this number of bytes of the first response", Targets: content, Numbers: []int{20_000, 2000, 500, 1, 0}, Group: "break"},
	{Name: "times", Effect: "status, cut and reset apply to this number of first requests instead of one", Numbers: []int{2, 3, 5}, Group: "repeat", Requires: faults},
	{Name: "every", Effect: "status, cut and reset apply to every request with a multiple of this number", Numbers: []int{3, 2}, Group: "repeat", Requires: faults},
	{Name: "always", Effect: "status, cut and reset apply to all requests", Group: "repeat", Requires: faults},

	// The form of responses.
	{Name: "gzip", Effect: "Content-Encoding gzip for requests that accept it or have no Accept-Encoding", Targets: []Target{Head, Manifest, Blob}, Group: "encoding"},
	{Name: "zstd", Effect: "Content-Encoding zstd for requests that accept it or have no Accept-Encoding", Targets: content, Group: "encoding"},
	{Name: "forced-encoding", Effect: "the Content-Encoding does not depend on Accept-Encoding", Requires: []string{"gzip", "zstd"}},
	{Name: "chunked", Effect: "no Content-Length, chunked transfer coding", Targets: content, Group: "length"},
	{Name: "until-close", Effect: "no Content-Length, the body ends with the connection", Targets: content, Group: "length"},
	{Name: "no-length", Effect: "no Content-Length", Targets: []Target{Head, BlobHead}},
	{Name: "ranges-ignored", Effect: "Range requests are answered by 200", Group: "ranges"},
	{Name: "ranges-416", Effect: "Range requests are answered by 416", Group: "ranges"},
	{Name: "ranges-wrong", Effect: "the Content-Range begins at the byte after the requested one", Group: "ranges"},
	{Name: "no-accept-ranges", Effect: "no Accept-Ranges header"},
	{Name: "charset", Effect: "the Content-Type of a manifest has the parameter charset", Targets: []Target{Head, Manifest}, Group: "content-type"},
	{Name: "octet-stream", Effect: "the Content-Type of a manifest is application/octet-stream", Targets: []Target{Manifest}, Group: "content-type"},
	{Name: "no-content-type", Effect: "a manifest has no Content-Type", Targets: []Target{Manifest}, Group: "content-type"},
	{Name: "no-digest", Effect: "no Docker-Content-Digest", Targets: []Target{Head, Manifest, Blob}, Group: "digest"},
	{Name: "garbled-digest", Effect: "Docker-Content-Digest is no digest", Targets: content, Group: "digest"},
	{Name: "close", Effect: "Connection: close in each response"},

	// Contents that change.
	{Name: "import-on-manifest", Effect: "in each round, blobs of a repository are 404 until a manifest was requested by GET"},
	{Name: "tag-moves", Effect: "before the second pulls, the tag is moved to another image"},
	{Name: "old-deleted", Effect: "the content of the old image is deleted", Requires: []string{"tag-moves"}},
}

// kinds contains the elements of all, by name.
var kinds = func() map[string]Kind {
	byName := map[string]Kind{}
	for i := range all {
		all[i].order = i
		byName[all[i].Name] = all[i]
	}
	return byName
}()
