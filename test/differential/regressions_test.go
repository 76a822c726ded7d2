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
	{"A6 old content deleted", "manifests-first tag-moves old-deleted"},
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
	{"D06 blob interrupted before the first byte", "cut@blob:0"},
	{"D07 one 404 for a tag", "status@head:404"},
}

// knownRegressions are patterns of scenarios in which the cache is worse than a direct pull today. TestSeeds does not
// generate scenarios that contain one of them. TestRegressions requires that at least one row with the pattern fails;
// otherwise the pattern must be removed.
var knownRegressions = []row{
	{"A6", "manifests-first tag-moves old-deleted"},
	{"D07", "status@head:404"},
}

// exceptions are scenarios in which the cache must fail although a direct pull works. TestSeeds does not generate
// scenarios that contain one of them.
var exceptions = []row{
	// The client of the upstream sends no request by http if the remote URL uses https: an attacker in the network could
	// read or change it.
	{"https to http", "tls redirect@head:307 redirect-http"},
	{"https to http", "tls redirect@manifest:307 redirect-http"},
	{"https to http", "tls redirect@blob:307 redirect-http"},
}

// permitted removes quirks until s contains neither a known regression nor an exception.
func permitted(s scenario.Scenario) scenario.Scenario {
	for _, r := range slices.Concat(knownRegressions, exceptions) {
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
	var (
		running sync.WaitGroup
		mu      sync.Mutex // guards failing
		failing []scenario.Scenario
	)
	limit := make(chan struct{}, *parallel)
	for _, r := range slices.Concat(regressionRows, exceptions) {
		s := mustParse(r.quirks)
		if s.String() != r.quirks {
			t.Errorf("%q: write it as %q", r.quirks, s)
		}
		isKnown := slices.ContainsFunc(knownRegressions, func(known row) bool { return s.Contains(mustParse(known.quirks)) })
		isException := slices.Contains(exceptions, r)
		running.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			text, err := c.repeatedFailure(t.Context(), s, dir)
			switch {
			case err != nil:
				t.Error(err)
			case isException && text == "":
				t.Errorf("%s: %q works, want a refusal", r.finding, s)
			case text != "" && !isException && !isKnown:
				t.Errorf("%s: %q has regressions:%s", r.finding, s, text)
			case text != "":
				t.Logf("%s: %q fails as listed:%s", r.finding, s, text)
			}
			if text != "" {
				mu.Lock()
				defer mu.Unlock()
				failing = append(failing, s)
			}
		})
	}
	running.Wait()
	for _, known := range knownRegressions {
		pattern := mustParse(known.quirks)
		if !slices.ContainsFunc(failing, func(s scenario.Scenario) bool { return s.Contains(pattern) }) {
			t.Errorf("%s: no row with %q fails: remove it from knownRegressions", known.finding, pattern)
		}
	}
}
