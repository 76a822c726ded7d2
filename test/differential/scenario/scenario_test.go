// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"slices"
	"testing"
)

func mustParse(t *testing.T, s string) Scenario {
	t.Helper()
	parsed, err := Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestTextForm(t *testing.T) {
	t.Parallel()
	const text = "layers:2 index bearer token-uses:3 cut@blob:500 ranges-416"
	if got := mustParse(t, "ranges-416 cut@blob:500 token-uses:3 bearer index layers:2").String(); got != text {
		t.Errorf("got %q, want %q", got, text)
	}
	for seed := range uint64(5000) {
		s := Generate(seed)
		if len(s) == 0 {
			continue // "none" has no parsed form
		}
		if got := mustParse(t, s.String()); !slices.Equal(got, s) {
			t.Errorf("seed %d: parsing %q returns %q", seed, s, got)
		}
	}
}

func TestParseRefusesInvalidScenarios(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"unknown", "layers", "layers:x", "layers:-1", "index:1", "index@blob", "cut:1", "cut@token:1", // each quirk alone
		"layers:2 layers:3", "credentials basic bearer", "bearer basic-before basic-after", "cut@blob:1 reset@blob:1", // exclude each other
		"one-header", "bearer one-header", "basic", "times:2", // lack a requirement
	} {
		if got, err := Parse(s); err == nil {
			t.Errorf("Parse(%q) = %q, want an error", s, got)
		}
	}
}

func TestContains(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		s, other string
		want     bool
	}{
		{"layers:3 bearer", "layers:2", true},
		{"layers:2 bearer", "layers:3", false},
		{"bearer token-uses:2", "bearer token-uses:3", true}, // fewer uses are more severe
		{"bearer token-uses:10", "bearer token-uses:3", false},
		{"status@head:500", "status@head:503", false}, // no order
		{"status@blob:503", "status@head:503", false},
		{"status@head:500", "status@head:*", true},
		{"status@head:500", "status@blob:*", false},
		{"bearer", "", true},
		{"", "bearer", false},
	} {
		if got := mustParse(t, tc.s).Contains(mustParse(t, tc.other)); got != tc.want {
			t.Errorf("%q contains %q: %t, want %t", tc.s, tc.other, got, tc.want)
		}
	}
}

func TestWithoutRemovesDependentQuirks(t *testing.T) {
	t.Parallel()
	s := mustParse(t, "credentials basic lower-case-scheme index")
	if got := s.Without(Quirk{Name: "credentials"}).String(); got != "index" {
		t.Errorf("got %q, want %q", got, "index")
	}
}

// TestGenerateUsesAllKinds proves that each kind occurs often enough to be combined with others.
func TestGenerateUsesAllKinds(t *testing.T) {
	t.Parallel()
	const seeds = 20_000
	count := map[string]int{}
	for seed := range uint64(seeds) {
		s := Generate(seed)
		if got := Generate(seed); !slices.Equal(got, s) {
			t.Fatalf("seed %d: %q and %q", seed, s, got)
		}
		for _, q := range s {
			count[q.Name]++
		}
	}
	for _, k := range Kinds() {
		if got := count[k.Name]; got < seeds/200 {
			t.Errorf("%s: in %d of %d scenarios", k.Name, got, seeds)
		}
	}
}

func TestShrink(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, s, want string
		fails         func(Scenario) bool
	}{
		{
			"one quirk and its requirement", "layers:4 layer-size:300000 credentials bearer token-uses:2 cut@blob:1 close", "bearer token-uses:3",
			func(s Scenario) bool { n, ok := s.Number("token-uses"); return ok && n <= 4 },
		},
		{
			"two quirks", "index bearer refused-403 pause@head:6000 chunked@blob times:5 cut@blob:0", "pause@head:500 chunked@blob",
			func(s Scenario) bool {
				n, _ := s.NumberAt("pause", Head)
				return n >= 200 && s.HasAt("chunked", Blob)
			},
		},
		{"no quirk", "index close", "none", func(Scenario) bool { return true }},
	} {
		s := mustParse(t, tc.s)
		calls := 0
		got := Shrink(s, func(s Scenario) bool {
			calls++
			if _, err := New(s...); err != nil {
				t.Errorf("%s: invalid candidate %q: %v", tc.name, s, err)
			}
			return tc.fails(s)
		})
		if got.String() != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
		if calls > 60 {
			t.Errorf("%s: %d calls", tc.name, calls)
		}
	}
}
