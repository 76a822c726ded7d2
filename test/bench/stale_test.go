// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

// States that take minutes because dial_timeout is ignored are not in a round.
func TestStatesOf(t *testing.T) {
	t.Parallel()
	if current, old := len(statesOf(nodePull{})), len(statesOf(nodePull{ignoresDialTimeout: true})); current != 5 || old != 4 {
		t.Errorf("%d states, and %d where dial_timeout is ignored, want 5 and 4", current, old)
	}
}
