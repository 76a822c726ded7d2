// SPDX-License-Identifier: Apache-2.0

package download

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// The set is compared with one bit per byte.
func TestSpans(t *testing.T) {
	t.Parallel()
	const size = 64
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		var s spans
		var model [size]bool
		for step := range 30 {
			added := Span{random.Int64N(size), random.Int64N(size + 1)}
			s.add(added)
			for i := added.Start; i < added.End; i++ {
				model[i] = true
			}
			compareSpans(t, s, model[:])
			if t.Failed() {
				t.Fatalf("seed %d, step %d, after %v: %v", seed, step, added, s)
			}
		}
	}
}

func compareSpans(t *testing.T, s spans, model []bool) {
	t.Helper()
	size := int64(len(model))
	var count int64
	for i := range size {
		end := i
		for end < size && model[end] {
			end++
		}
		if got := s.endAt(i); got != end {
			t.Errorf("endAt(%d) is %d, want %d", i, got, end)
		}
		gapEnd := end
		for gapEnd < size && !model[gapEnd] {
			gapEnd++
		}
		if got, want := s.firstGap(Span{i, size}), (Span{end, gapEnd}); got != want {
			t.Errorf("firstGap from %d is %v, want %v", i, got, want)
		}
		if model[i] {
			count++
		}
	}
	if got := s.bytes(); got != count {
		t.Errorf("%d bytes, want %d", got, count)
	}
	if !slices.IsSortedFunc(s, func(a, b Span) int { return int(a.End - b.Start) }) {
		t.Error("the spans overlap or touch")
	}
}
