// SPDX-License-Identifier: Apache-2.0

package scenario

import "math/rand/v2"

// maxQuirks is the number of quirks that Generate draws at most. Required quirks are added to them.
const maxQuirks = 6

// maxDelay is the sum of the numbers of "pause" and "pause-body" in a generated scenario, in milliseconds. A pull has
// several requests of one target, and each pull is repeated.
const maxDelay = 6000

// Generate returns the scenario of a seed. Equal seeds give equal scenarios as long as the list of kinds is unchanged.
func Generate(seed uint64) Scenario {
	random := rand.New(rand.NewPCG(seed, 0))
	s := Scenario{}
	for range 1 + random.IntN(maxQuirks) {
		if extended, ok := extend(random, s, all[random.IntN(len(all))]); ok {
			s = extended
		}
	}
	return s
}

// extend adds a quirk of the kind and the quirks that it requires. ok is false if s excludes one of them.
func extend(random *rand.Rand, s Scenario, k Kind) (extended Scenario, ok bool) {
	if !s.satisfies(k) {
		required := k.Requires[random.IntN(len(k.Requires))]
		if s, ok = extend(random, s, kinds[required]); !ok {
			return nil, false
		}
	}
	q := Quirk{Name: k.Name}
	if len(k.Targets) > 0 {
		q.Target = k.Targets[random.IntN(len(k.Targets))]
	}
	if len(k.Numbers) > 0 {
		q.Number = k.Numbers[random.IntN(len(k.Numbers))]
	}
	extended, err := New(append(s[:len(s):len(s)], q)...)
	return extended, err == nil && delay(extended) <= maxDelay
}

// delay returns the sum of the pauses, in milliseconds.
func delay(s Scenario) int {
	sum := 0
	for _, q := range s {
		if q.Name == "pause" || q.Name == "pause-body" {
			sum += q.Number
		}
	}
	return sum
}
