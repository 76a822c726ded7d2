// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"slices"
	"sync"
	"testing"

	"github.com/registry-cache/extension/test/differential/scenario"
)

// row is a scenario in text form with the name of the finding.
type row struct {
	finding, quirks string
}

// regressionRows are scenarios in which the cache was worse than a direct pull, or could be. A finding of a review has its
// number there. Add each failure of TestSeeds.
var regressionRows = []row{
	{"B01 blob before the manifest is imported", "manifests-first import-on-manifest"},
	{"B01 blob before the manifest is imported", "by-digest manifests-first import-on-manifest"},
	{"B01 blob before the manifest is imported", "resolve-first no-digest@head import-on-manifest"},
	{"B01 blob before the manifest is imported", "reset@blob:0 import-on-manifest"},
	{"B01 blob before the manifest is imported", "status@blob:503 import-on-manifest"},
	{"B02 HEAD of a blob fails", "repositories:2 shared-layer status@blob-head:404 always"},
	{"B02 HEAD of a blob fails", "repositories:2 shared-layer status@blob-head:503"},
	{"B04 401 without challenge", "revalidate-always bearer tokens-revoked refused-bare"},
	{"B04 401 without challenge", "bearer token-uses:3 refused-bare"},
	{"B04 401 without challenge", "bearer tokens-revoked refused-bare status@head:503"},
	{"B04 403 for a refused token", "revalidate-always bearer tokens-revoked refused-403"},
	{"B05 slow headers", "revalidate-always pause@head:6000"},
	{"B05 slow headers", "pause@blob:6000"},
	{"B08 realm per repository", "repositories:2 bearer realm-per-repository"},
	{"B08 realm per repository", "repositories:2 revalidate-always bearer realm-per-repository"},
	{"B12 Basic before Bearer", "bearer basic-before"},
	{"B12 Basic after Bearer", "bearer basic-after"},
	{"B12 Basic after Bearer", "bearer basic-after one-header"},
	{"B13 encoded manifest", "gzip@manifest"},
	{"B13 encoded manifest", "zstd@manifest"},
	{"B20 other realm for a refused token", "revalidate-always bearer tokens-revoked refused-realm"},
	{"A4 slow first transfer", "layer-size:40000 abort-first:3000 slow-first@blob:1000"},
	{"A5 encoded blob", "gzip@blob"},
	{"A5 encoded blob", "zstd@blob"},
	{"A6 old content deleted", "resolve-first tag-moves old-deleted"},
	{"B2 trickling error", "status@blob:503 trickling-error"},
	{"D01 challenge of a redirect target", "redirect@head:307 redirect-challenge"},
	{"D01 challenge of a redirect target", "redirect@manifest:307 redirect-challenge"},
	{"D01 challenge of a redirect target", "redirect@blob:307 redirect-challenge"},
	{"D02 realm on another port of a private address", "bearer realm-port"},
	{"D03 one 5xx", "status@head:503"},
	{"D03 one 5xx", "status@head:500"},
	{"D03 one 5xx", "status@manifest:503"},
	{"D03 one 5xx", "status@manifest:500"},
	{"D03 one 5xx", "status@blob:503"},
	{"D03 one 5xx", "status@blob:500"},
	{"D04 one 429", "status@head:429"},
	{"D04 one 429", "status@manifest:429"},
	{"D04 one 429", "status@blob:429"},
	{"D05 interrupted manifest", "cut@manifest:1"},
	{"D05 interrupted manifest", "cut@manifest:1 always"},
	{"D05 interrupted manifest", "cut@manifest:1 always ranges-416"},
	{"D05 interrupted manifest", "cut@manifest:0 times:3"},
	{"D05 interrupted manifest", "cut@manifest:1 times:3 gzip@manifest forced-encoding"},
	{"D06 blob interrupted before the first byte", "cut@blob:0"},
	{"D06 blob interrupted before the first byte", "cut@blob:0 times:3"},
	{"D08 several 429", "status@head:429 times:5"},
	{"D08 several 429", "status@blob:429 times:5"},
	{"B02 HEAD of a blob fails", "repositories:2 shared-layer status@blob-head:503 always"},
	{"D13 error between challenges", "redirect@blob:307 redirect-challenge status@blob:503 every:2"},
	{"D13 error between challenges", "bearer token-lifetime:100 status@head:503"},
	{"D14 wrong Content-Range", "cut@manifest:1 ranges-wrong"},
	{"D14 wrong Content-Range", "layer-size:40000 cut@blob:20000 ranges-wrong"},
	{"D10 blob interrupted often", "layer-size:1000000 cut@blob:20000 always"},
	{"D11 remembered token after a new challenge", "bearer tokens-revoked status@head:403"},
	{"D11 remembered token after a new challenge", "bearer tokens-revoked refused-bare status@head:403"},
	{"D11 remembered token after a new challenge", "bearer tokens-revoked refused-403 status@head:403"},
	{"D12 pause in each body", "pause-body@blob:6000"},
	{"D12 pause in each body", "pause-body@blob:6000 ranges-ignored"},
	{"D07 one 404 for a tag", "status@head:404"},
	{"D09 Retry-After of one second", "status@head:503 retry-after:1"},
	{"D09 Retry-After of one second", "status@blob:429 retry-after:1"},
	// The cache has stored only the manifests of an image, or a part of its content. Then the upstream moves the tag and deletes
	// the image.
	{"A6 old content deleted", "manifests-first tag-moves old-deleted"},
	{"A6 old content deleted", "abort-first:500 tag-moves old-deleted"},
}

// exceptions are scenarios in which the cache must fail although a direct pull works. TestSeeds does not generate
// scenarios that contain one of them.
var exceptions = []row{
	// The client of the upstream sends no request by http if the remote URL uses https: an attacker in the network could
	// read or change it.
	{"https to http", "tls redirect@head:307 redirect-http"},
	{"https to http", "tls redirect@manifest:307 redirect-http"},
	{"https to http", "tls redirect@blob:307 redirect-http"},
	// A redirect target names a token server with an internal IP address: a registry could direct requests to services that
	// only the cache can reach.
	{"internal token server", "bearer realm-port redirect@head:307 redirect-challenge"},
	{"internal token server", "bearer realm-port redirect@manifest:307 redirect-challenge"},
	{"internal token server", "bearer realm-port redirect@blob:307 redirect-challenge"},
	// An upstream that sends less than 16 KiB per connection gets a few requests per second at most. containerd sends them
	// without a pause: thousands for a large layer.
	{"few bytes per connection", "cut@blob:1 always"},
	{"few bytes per connection", "layer-size:40000 cut@blob:500 always"},
	{"few bytes per connection", "layer-size:40000 cut@blob:2000 always"},
	// An upstream that states a time in Retry-After is not requested earlier (RFC 9110, section 10.2.3); containerd ignores
	// it.
	{"long Retry-After", "status@head:503 retry-after:60"},
	{"long Retry-After", "status@head:429 retry-after:60"},
	{"long Retry-After", "status@manifest:503 retry-after:60"},
	{"long Retry-After", "status@manifest:429 retry-after:60"},
	{"long Retry-After", "status@blob:503 retry-after:60"},
	{"long Retry-After", "status@blob:429 retry-after:60"},
}

// permitted removes quirks until s contains no exception.
func permitted(s scenario.Scenario) scenario.Scenario {
	for _, r := range exceptions {
		s = without(s, mustParse(r.quirks))
	}
	return s
}

func mustParse(text string) scenario.Scenario {
	s, err := scenario.Parse(text)
	if err != nil {
		panic(err) // a mistake in a table
	}
	return s
}

// TestRegressions runs each row of the tables.
func TestRegressions(t *testing.T) {
	c := startClients(t)
	dir := workDir(t)
	var running sync.WaitGroup
	limit := make(chan struct{}, *parallel)
	for _, r := range slices.Concat(regressionRows, exceptions) {
		s := mustParse(r.quirks)
		if s.String() != r.quirks {
			t.Errorf("%q: write it as %q", r.quirks, s)
		}
		fails := slices.Contains(exceptions, r)
		running.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			run := c.repeatedFailure
			if fails {
				run = c.failure
			}
			text, err := run(t.Context(), s, dir)
			switch {
			case err != nil:
				t.Error(err)
			case fails && text == "":
				t.Errorf("%s: %q works: remove the row", r.finding, s)
			case text != "" && !fails:
				t.Errorf("%s: %q has regressions:%s", r.finding, s, text)
			case text != "":
				t.Logf("%s: %q fails as listed:%s", r.finding, s, text)
			}
		})
	}
	running.Wait()
}
