// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"testing"
)

func TestTrace(t *testing.T) {
	t.Parallel()
	tr := trace{images: 192, pulls: 14000, days: 14, seed: 1}
	choices := tr.choices()
	if !slices.Equal(choices, tr.choices()) {
		t.Error("two traces of one seed differ")
	}
	count := func(of []int) []int {
		counts := make([]int, tr.images)
		for _, c := range of {
			counts[c]++
		}
		return counts
	}
	first, last := count(choices[:1000]), count(choices[13000:])
	// The most popular image of the first day, its share, and a different most popular image on the last day.
	if most := slices.Max(first); first[0] != most || most < 60 || most > 250 {
		t.Errorf("on the first day the first image was pulled %d times of 1000, the most for any is %d", first[0], most)
	}
	if newest := tr.images - 13*tr.images/28; last[newest] != slices.Max(last) || first[newest] > 10 {
		t.Errorf("the image of the last day was pulled %d times of 1000 on the last day, %d times on the first", last[newest], first[newest])
	}
	for c, n := range count(choices) {
		if n == 0 {
			t.Errorf("image %d was never pulled: the trace is smaller than it says", c)
		}
	}
}
