package main

import "testing"

// What takes minutes is left out where it is not asked for, and nothing else is.
func TestStatesOf(t *testing.T) {
	t.Parallel()
	current, old := nodePull{}, nodePull{ignoresDialTimeout: true}
	for _, tc := range []struct {
		name              string
		by                nodePull
		document, ignored bool
		want              int
	}{
		{"all", current, true, true, 6},
		{"later rounds", current, false, false, 5},
		{"all of one that ignores dial_timeout", old, true, true, 6},
		{"the large image", old, true, false, 5},
		{"its later rounds", old, false, false, 4},
	} {
		if got := len(statesOf(tc.by, tc.document, tc.ignored)); got != tc.want {
			t.Errorf("%s: %d states, want %d", tc.name, got, tc.want)
		}
	}
}
