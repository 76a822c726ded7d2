// SPDX-License-Identifier: Apache-2.0

package scenario

import "slices"

// Shrink returns a scenario for which fails still returns true: without quirks that the failure does not need, and with
// the least severe numbers. fails is not called for s itself. The number of calls is at most quadratic in the number of
// quirks; a typical scenario needs 10 to 30.
func Shrink(s Scenario, fails func(Scenario) bool) Scenario {
	for {
		smaller, ok := removeOne(s, fails)
		if !ok {
			break
		}
		s = smaller
	}
	for _, q := range slices.Clone(s) {
		s = soften(s, q, fails)
	}
	return s
}

// removeOne removes the first quirk that the failure does not need. ok is false if it needs all of them.
func removeOne(s Scenario, fails func(Scenario) bool) (smaller Scenario, ok bool) {
	for _, q := range s {
		if smaller := s.Without(q); fails(smaller) {
			return smaller, true
		}
	}
	return s, false
}

// soften replaces the number of a quirk by the least severe one for which the scenario fails.
func soften(s Scenario, q Quirk, fails func(Scenario) bool) Scenario {
	kind := kinds[q.Name]
	i := slices.Index(s, q)
	for _, number := range kind.Numbers {
		if kind.severity(number) >= kind.severity(q.Number) {
			break
		}
		softer := slices.Clone(s)
		softer[i].Number = number
		if fails(softer) {
			return softer
		}
	}
	return s
}
