// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/registry-cache/extension/test/differential/registry"
	"github.com/registry-cache/extension/test/differential/scenario"
)

// effect is a scenario with few quirks and the proof that a direct pull observes them.
type effect struct {
	quirks string
	// v1 and v2 are the results of the direct pulls of the client of containerd 1.7 and 2.x, one word per round: "ok" or
	// "fails". Empty means "ok ok".
	v1, v2 string
	// proof returns true for requests that show the effect. Nil if the results alone show it.
	proof func([]registry.Request) bool
	// onlyV2 indicates that the client of containerd 1.7 sends no request to which the quirk applies.
	onlyV2 bool
}

// some returns a proof by at least one request.
func some(matches ...func(registry.Request) bool) func([]registry.Request) bool {
	return func(requests []registry.Request) bool {
		return slices.ContainsFunc(requests, func(q registry.Request) bool {
			for _, match := range matches {
				if !match(q) {
					return false
				}
			}
			return true
		})
	}
}

// each returns a proof by all requests that match the first condition, of which there must be at least one.
func each(condition, match func(registry.Request) bool) func([]registry.Request) bool {
	return func(requests []registry.Request) bool {
		return some(condition)(requests) && !some(condition, func(q registry.Request) bool { return !match(q) })(requests)
	}
}

func at(t scenario.Target) func(registry.Request) bool {
	return func(q registry.Request) bool {
		isManifest := strings.Contains(q.Path, "/manifests/")
		switch t {
		case scenario.Token:
			return q.Host == "token"
		case scenario.Head:
			return q.Method == http.MethodHead && isManifest
		case scenario.Manifest:
			return q.Method == http.MethodGet && isManifest
		}
		return q.Method == http.MethodGet && strings.Contains(q.Path, "/blobs/")
	}
}

func answered(status int) func(registry.Request) bool {
	return func(q registry.Request) bool { return q.Status == status }
}

func atHost(host string) func(registry.Request) bool {
	return func(q registry.Request) bool { return q.Host == host }
}

func inRound(round int) func(registry.Request) bool {
	return func(q registry.Request) bool { return q.Round == round-1 }
}

func header(name, value string) func(registry.Request) bool {
	return func(q registry.Request) bool { return strings.Join(q.Header.Values(name), "\n") == value }
}

func challenge(parts ...string) func(registry.Request) bool {
	return func(q registry.Request) bool {
		value := strings.Join(q.Header.Values("WWW-Authenticate"), "\n")
		for _, part := range parts {
			before, after, found := strings.Cut(value, part)
			if !found {
				return false
			}
			_, value = before, after
		}
		return q.Status == http.StatusUnauthorized
	}
}

func headerAfter(atLeast time.Duration) func(registry.Request) bool {
	return func(q registry.Request) bool { return q.HeaderAfter >= atLeast }
}

func bodyTakes(atLeast time.Duration) func(registry.Request) bool {
	return func(q registry.Request) bool { return q.EndAfter-q.HeaderAfter >= atLeast }
}

func broken(bytes int) func(registry.Request) bool {
	return func(q registry.Request) bool { return q.Broken && q.Bytes == bytes }
}

func hasToken(q registry.Request) bool {
	return strings.HasPrefix(q.RequestHeader.Get("Authorization"), "Bearer ")
}

func isRange(q registry.Request) bool { return q.RequestHeader.Get("Range") != "" }

func not(match func(registry.Request) bool) func(registry.Request) bool {
	return func(q registry.Request) bool { return !match(q) }
}

// effects contains at least one row for each kind of quirk.
var effects = []effect{
	{quirks: "none", proof: func(requests []registry.Request) bool {
		var got []string
		for _, q := range requests {
			kind := "blob"
			if strings.Contains(q.Path, "/manifests/") {
				kind = "manifest"
			}
			got = append(got, fmt.Sprintf("%s %s %d", q.Method, kind, q.Status))
		}
		round := []string{"HEAD manifest 200", "GET manifest 200", "GET blob 200", "GET blob 200"}
		return slices.Equal(got, append(round, round...))
	}},
	{quirks: "layers:3", proof: func(requests []registry.Request) bool {
		blobs := 0
		for _, q := range requests {
			if at(scenario.Blob)(q) {
				blobs++
			}
		}
		return blobs == registry.Rounds*4
	}},
	{quirks: "layer-size:40000", proof: some(at(scenario.Blob), func(q registry.Request) bool { return q.Bytes == 40_000 })},
	{quirks: "index", proof: func(requests []registry.Request) bool {
		manifests := map[string]bool{}
		for _, q := range requests {
			if at(scenario.Manifest)(q) {
				manifests[q.Header.Get("Content-Type")] = true
			}
		}
		return len(manifests) == 2
	}},
	{quirks: "docker-types", proof: some(header("Content-Type", "application/vnd.docker.distribution.manifest.v2+json"))},
	{quirks: "by-digest", proof: each(at(scenario.Head), func(q registry.Request) bool { return strings.Contains(q.Path, "/manifests/sha256:") })},
	{quirks: "repositories:2", proof: some(at(scenario.Blob), func(q registry.Request) bool { return strings.HasPrefix(q.Path, "/v2/team-1/app/") })},
	{quirks: "repositories:2 shared-layer", proof: func(requests []registry.Request) bool {
		repositories := map[string]map[string]bool{}
		for _, q := range requests {
			if repository, digest, ok := strings.Cut(q.Path, "/blobs/"); ok {
				if repositories[digest] == nil {
					repositories[digest] = map[string]bool{}
				}
				repositories[digest][repository] = true
			}
		}
		for _, names := range repositories {
			if len(names) == 2 {
				return true
			}
		}
		return false
	}},
	{quirks: "resolve-first", proof: func(requests []registry.Request) bool {
		return each(inRound(1), at(scenario.Head))(requests) && some(inRound(2), at(scenario.Blob))(requests)
	}},
	{quirks: "manifests-first", proof: func(requests []registry.Request) bool {
		return some(inRound(1), at(scenario.Manifest))(requests) && !some(inRound(1), at(scenario.Blob))(requests)
	}},
	{quirks: "abort-first:500 slow-first@blob:1000", v1: "fails ok", v2: "fails ok"},

	{quirks: "tls", proof: each(inRound(1), func(q registry.Request) bool { return q.TLS })},
	{quirks: "credentials basic", proof: func(requests []registry.Request) bool {
		return some(challenge("Basic realm="))(requests) && each(at(scenario.Blob), func(q registry.Request) bool {
			_, _, ok := (&http.Request{Header: q.RequestHeader}).BasicAuth()
			return ok
		})(requests)
	}},
	{quirks: "bearer", proof: func(requests []registry.Request) bool {
		return some(challenge("Bearer realm=", "scope="))(requests) && some(at(scenario.Token), answered(200))(requests) &&
			each(func(q registry.Request) bool { return at(scenario.Blob)(q) && q.Status == 200 }, hasToken)(requests)
	}},
	{quirks: "credentials bearer", proof: some(at(scenario.Token), answered(200), func(q registry.Request) bool { return q.Method == http.MethodPost })},
	{quirks: "bearer basic-before", proof: some(challenge("Basic realm=", "\nBearer realm="))},
	{quirks: "bearer basic-after", proof: some(challenge("Bearer realm=", "\nBasic realm="))},
	{quirks: "bearer basic-after one-header", proof: some(challenge("Bearer realm=", ", Basic realm="))},
	// containerd reads the first challenge of a header only.
	{quirks: "bearer basic-before one-header", v1: "fails fails", v2: "fails fails", proof: some(challenge("Basic realm=", ", Bearer realm="))},
	{quirks: "bearer lower-case-scheme", proof: some(challenge("bearer realm="))},
	{quirks: "bearer realm-port", proof: some(challenge(`realm="http://127.0.0.1:`))},
	{quirks: "repositories:2 bearer realm-per-repository", proof: func(requests []registry.Request) bool {
		return some(challenge(`/token/team-0/app",`))(requests) && some(challenge(`/token/team-1/app",`))(requests)
	}},
	{quirks: "bearer no-scope", proof: each(answered(401), not(challenge("scope=")))},
	{quirks: "bearer access-token", proof: some(at(scenario.Token), func(q registry.Request) bool { return q.Bytes < len(`{"access_token":"","token":""}`) })},
	{quirks: "credentials bearer no-token-post:404", proof: some(at(scenario.Token), answered(404))},
	{quirks: "bearer expires-in:60"},
	{quirks: "bearer token-uses:2 refused-error", proof: some(answered(401), hasToken)},
	{quirks: "bearer token-lifetime:2000 pause@manifest:3000 refused-error", proof: some(answered(401), hasToken)},
	{quirks: "bearer tokens-revoked"},
	{quirks: "bearer token-uses:2 refused-bare", v1: "fails fails", v2: "fails fails", proof: some(answered(401), hasToken, not(challenge("Bearer")))},
	{quirks: "bearer token-uses:2 refused-403", v1: "fails fails", v2: "fails fails", proof: some(answered(403), hasToken)},
	{quirks: "bearer token-uses:2 refused-realm", v1: "fails fails", v2: "fails fails", proof: some(challenge("/denied"), hasToken)},

	{quirks: "redirect@blob:307", proof: each(func(q registry.Request) bool { return at(scenario.Blob)(q) && q.Host == "registry" }, answered(307))},
	{quirks: "redirect@head:302", proof: some(atHost("target"), at(scenario.Head), answered(200))},
	{quirks: "redirect@manifest:308 redirect-relative", proof: some(atHost("registry"), answered(200), func(q registry.Request) bool { return strings.HasPrefix(q.Path, "/content/") })},
	{quirks: "redirect@blob:307 redirect-port", proof: some(answered(307), func(q registry.Request) bool { return strings.Contains(q.Header.Get("Location"), "http://127.0.0.1:") })},
	{quirks: "redirect@blob:307 redirect-address", proof: some(atHost("target"), func(q registry.Request) bool { return q.LocalAddress == "127.0.0.2" })},
	{quirks: "redirect@blob:303 redirect-chain:4", proof: func(requests []registry.Request) bool {
		further := 0
		for _, q := range requests {
			if q.Host == "target" && q.Status == 307 {
				further++
			}
		}
		return further == registry.Rounds*2*4
	}},
	{quirks: "redirect@blob:307 redirect-challenge", proof: func(requests []registry.Request) bool {
		return some(atHost("target"), challenge("/target"))(requests) && some(atHost("target"), answered(200), hasToken)(requests)
	}},
	{quirks: "redirect@blob:307 redirect-single-use"},
	{quirks: "bearer redirect@blob:307 redirect-strict", proof: each(atHost("target"), not(hasToken))},
	{quirks: "bearer redirect@blob:307 redirect-port redirect-strict", v1: "fails fails", v2: "fails fails", proof: some(atHost("target"), answered(400), hasToken)},
	{quirks: "tls redirect@blob:307 redirect-http", proof: each(atHost("target"), func(q registry.Request) bool { return !q.TLS })},

	{quirks: "status@head:503", v1: "fails ok", proof: some(at(scenario.Head), answered(503))},
	{quirks: "status@head:405 always", proof: func(requests []registry.Request) bool {
		return each(at(scenario.Head), answered(405))(requests)
	}},
	{quirks: "status@manifest:404", v1: "fails ok", v2: "fails ok", proof: some(at(scenario.Manifest), answered(404))},
	{quirks: "status@blob:429 times:3", proof: some(at(scenario.Blob), answered(429))},
	{quirks: "bearer status@token:403", v1: "fails ok", v2: "fails ok", proof: some(at(scenario.Token), answered(403))},
	{quirks: "status@blob:429 retry-after:60", proof: some(header("Retry-After", "60"))},
	{quirks: "status@blob:503 html-error", v1: "fails ok", proof: some(answered(503), header("Content-Type", "text/html"))},
	{quirks: "status@blob:503 trickling-error", v1: "fails ok", proof: some(answered(503), header("Content-Length", "600"))},
	{quirks: "status@head:503 every:2", v1: "ok fails", proof: some(inRound(2), answered(503))},
	{quirks: "status@head:503 always", v1: "fails fails", v2: "fails fails", proof: each(at(scenario.Head), answered(503))},
	{quirks: "pause@head:500", proof: each(at(scenario.Head), headerAfter(500*time.Millisecond))},
	{quirks: "pause@manifest:500", proof: each(at(scenario.Manifest), headerAfter(500*time.Millisecond))},
	{quirks: "pause@blob:500", proof: each(at(scenario.Blob), headerAfter(500*time.Millisecond))},
	{quirks: "bearer pause@token:500", proof: each(at(scenario.Token), headerAfter(500*time.Millisecond))},
	{quirks: "pause-body@blob:500", proof: each(at(scenario.Blob), bodyTakes(500*time.Millisecond))},
	{quirks: "pause-body@manifest:500", proof: each(at(scenario.Manifest), bodyTakes(500*time.Millisecond))},
	{quirks: "layer-size:40000 rate@blob:50000", proof: some(at(scenario.Blob), bodyTakes(700*time.Millisecond))},
	{quirks: "slow-first@blob:1000", proof: func(requests []registry.Request) bool {
		return some(inRound(1), at(scenario.Blob), bodyTakes(900*time.Millisecond))(requests) && !some(inRound(2), bodyTakes(900*time.Millisecond))(requests)
	}},

	{quirks: "cut@blob:500", proof: func(requests []registry.Request) bool {
		return some(broken(500))(requests) && some(isRange, answered(206))(requests)
	}},
	{quirks: "cut@manifest:1", proof: some(at(scenario.Manifest), broken(1))},
	{quirks: "tls cut@blob:500", proof: some(broken(500))},
	// A reset is an error for containerd, unlike a closed connection.
	{quirks: "reset@blob:500", v1: "fails ok", v2: "fails ok", proof: some(at(scenario.Blob), broken(500))},
	{quirks: "tls reset@blob:500", v1: "fails ok", v2: "fails ok", proof: some(broken(500))},
	{quirks: "cut@blob:500 times:2", proof: func(requests []registry.Request) bool {
		return some(isRange, func(q registry.Request) bool { return q.Broken || q.Bytes == 500 })(requests)
	}},

	{quirks: "gzip@head forced-encoding", v1: "fails fails", v2: "fails fails", proof: some(at(scenario.Head), header("Content-Encoding", "gzip"))},
	{quirks: "gzip@manifest", proof: each(at(scenario.Manifest), header("Content-Encoding", "gzip"))},
	{quirks: "gzip@blob", proof: each(at(scenario.Blob), header("Content-Encoding", "gzip"))},
	{quirks: "zstd@manifest", proof: some(at(scenario.Manifest), header("Content-Encoding", "zstd")), onlyV2: true},
	{quirks: "zstd@blob", proof: some(at(scenario.Blob), header("Content-Encoding", "zstd")), onlyV2: true},
	{quirks: "zstd@blob forced-encoding", v1: "fails fails", proof: each(at(scenario.Blob), header("Content-Encoding", "zstd"))},
	{quirks: "chunked@blob", proof: each(at(scenario.Blob), header("Content-Length", ""))},
	{quirks: "chunked@manifest", proof: each(at(scenario.Manifest), header("Content-Length", ""))},
	{quirks: "until-close@blob", proof: each(at(scenario.Blob), header("Transfer-Encoding", "identity"))},
	{quirks: "no-length@head", proof: each(at(scenario.Head), header("Content-Length", ""))},
	{quirks: "cut@blob:500 ranges-ignored", proof: some(isRange, answered(200))},
	{quirks: "cut@blob:500 ranges-416", v1: "fails ok", v2: "fails ok", proof: some(isRange, answered(416))},
	{quirks: "cut@blob:500 ranges-wrong", v1: "fails ok", proof: some(isRange, header("Content-Range", "bytes 501-999/1000"))},
	{quirks: "no-accept-ranges", proof: each(at(scenario.Blob), header("Accept-Ranges", ""))},
	{quirks: "charset@head", proof: each(at(scenario.Head), header("Content-Type", "application/vnd.oci.image.manifest.v1+json; charset=utf-8"))},
	{quirks: "charset@manifest", proof: each(at(scenario.Manifest), header("Content-Type", "application/vnd.oci.image.manifest.v1+json; charset=utf-8"))},
	{quirks: "octet-stream@manifest", proof: each(at(scenario.Manifest), header("Content-Type", "application/octet-stream"))},
	{quirks: "no-content-type@manifest", proof: each(at(scenario.Manifest), header("Content-Type", ""))},
	{quirks: "no-digest@head", proof: each(at(scenario.Head), header("Docker-Content-Digest", ""))},
	{quirks: "no-digest@manifest", proof: each(at(scenario.Manifest), header("Docker-Content-Digest", ""))},
	{quirks: "no-digest@blob", proof: each(at(scenario.Blob), header("Docker-Content-Digest", ""))},
	{quirks: "garbled-digest@manifest", proof: each(at(scenario.Manifest), header("Docker-Content-Digest", "sha256:none"))},
	{quirks: "garbled-digest@blob", proof: each(at(scenario.Blob), header("Docker-Content-Digest", "sha256:none"))},
	{quirks: "close", proof: each(inRound(1), header("Connection", "close"))},

	{quirks: "import-on-manifest"},
	{quirks: "tag-moves", proof: func(requests []registry.Request) bool {
		digests := map[string]bool{}
		for _, q := range requests {
			if at(scenario.Head)(q) {
				digests[q.Header.Get("Docker-Content-Digest")] = true
			}
		}
		return len(digests) == 2
	}},
}

// notObserved are kinds that change the cache instead of the registry, or requests that containerd does not send or does
// not repeat. TestRegistry of package registry tests the latter.
var notObserved = []string{"revalidate-always", "old-deleted"}

// TestQuirks proves that each quirk has its effect on direct pulls. Without it, TestSeeds could compare pulls from a
// registry without quirks.
func TestQuirks(t *testing.T) {
	c := startClients(t)
	dir := workDir(t)
	var running sync.WaitGroup
	limit := make(chan struct{}, *parallel)
	tested := map[string]bool{}
	for _, row := range effects {
		s, err := scenario.Parse(strings.TrimPrefix(row.quirks, "none"))
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range s {
			tested[q.Name] = true
		}
		for i, session := range c {
			want, wantProof := []string{row.v1, row.v2}[i], row.proof
			if want == "" {
				want = "ok ok"
			}
			if wantProof == nil || i == 0 && row.onlyV2 {
				wantProof = func([]registry.Request) bool { return true }
			}
			running.Go(func() {
				limit <- struct{}{}
				defer func() { <-limit }()
				var got transcript
				for range attempts { // on a busy machine, a pull can exceed its time limit
					var err error
					if got, err = run(t.Context(), s, session, direct, dir); err != nil {
						t.Errorf("%s: %v", s, err)
						return
					}
					if got.results(s) == want && wantProof(got.requests) {
						return
					}
				}
				t.Errorf("%s, containerd %s: %q, want %q and a proof in these requests:\n%s%s", s, session.Containerd, got.results(s), want, got.requestLog(), got.errors())
			})
		}
	}
	running.Wait()
	for _, kind := range scenario.Kinds() {
		if tested[kind.Name] == slices.Contains(notObserved, kind.Name) {
			t.Errorf("%s must be either in effects or in notObserved", kind.Name)
		}
	}
}

// results returns one word per round: "ok" if all pulls of the round worked and returned the image of the registry,
// otherwise "fails".
func (t transcript) results(s scenario.Scenario) string {
	var words [registry.Rounds]string
	for i := range words {
		words[i] = "ok"
	}
	for _, p := range t.pulls {
		aborted := p.round == 0 && (s.Has("resolve-first") || s.Has("manifests-first"))
		if p.Error != "" || !aborted && p.want != p.image() {
			words[p.round] = "fails"
		}
	}
	return strings.Join(words[:], " ")
}

func (t transcript) errors() string {
	var text strings.Builder
	for _, p := range t.pulls {
		fmt.Fprintf(&text, "\t\tround %d: %s\n", p.round+1, p)
	}
	return text.String()
}
