package main

import "testing"

// What takes minutes is left out where it is not asked for, and nothing else is.
func TestStatesOf(t *testing.T) {
	t.Parallel()
	current, old := nodePull{}, nodePull{ignoresDialTimeout: true}
	for _, tc := range []struct {
		name        string
		by          nodePull
		long, small bool
		want        int
	}{
		{"the first round", current, true, true, 6},
		{"of the large image", current, true, false, 6},
		{"later rounds", current, false, true, 5},
		{"where dial_timeout is ignored", old, true, true, 6},
		{"there, of the large image", old, true, false, 4},
		{"there, later rounds", old, false, true, 4},
	} {
		if got := len(statesOf(tc.by, tc.long, tc.small)); got != tc.want {
			t.Errorf("%s: %d states, want %d", tc.name, got, tc.want)
		}
	}
}
