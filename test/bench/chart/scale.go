// SPDX-License-Identifier: Apache-2.0

package chart

import "math"

// scale maps values to coordinates.
type scale struct {
	log      bool
	min, max float64 // values
	from, to float64 // coordinates
}

// newScale returns a scale for all values. A linear scale starts at 0; a logarithmic scale ignores values of 0 or less.
func newScale(log bool, values []float64, from, to float64) scale {
	s := scale{log: log, from: from, to: to, min: math.Inf(1), max: math.Inf(-1)}
	for _, v := range values {
		if log && v <= 0 || math.IsNaN(v) {
			continue
		}
		s.min, s.max = math.Min(s.min, v), math.Max(s.max, v)
	}
	switch {
	case math.IsInf(s.min, 1) && log:
		s.min, s.max = 1, 10
	case math.IsInf(s.min, 1):
		s.min, s.max = 0, 1
	case log:
		s.min, s.max = step125(s.min, false), step125(s.max, true)
		if s.min == s.max {
			s.max *= 10
		}
	default:
		s.min = 0
		if s.max <= 0 {
			s.max = 1
		}
	}
	return s
}

// step125 returns the nearest of …, 1, 2, 5, 10, … that is not below v (up), or not above it.
func step125(v float64, up bool) float64 {
	decade := math.Pow(10, math.Floor(math.Log10(v)))
	below := decade
	for _, step := range []float64{1, 2, 5, 10} {
		switch {
		case step*decade <= v*(1+1e-9):
			below = step * decade
			if up && math.Abs(below-v) <= v*1e-9 {
				return below
			}
		case up:
			return step * decade
		}
	}
	return below
}

// at returns the coordinate of a value. Values of 0 or less are at the start of a logarithmic scale.
func (s scale) at(v float64) float64 {
	share := (v - s.min) / (s.max - s.min)
	if s.log {
		share = 0
		if v > 0 {
			share = math.Log(v/s.min) / math.Log(s.max/s.min)
		}
	}
	return s.from + math.Min(math.Max(share, 0), 1)*(s.to-s.from)
}

// ticks returns round values for the axis.
func (s scale) ticks() []float64 {
	var ticks []float64
	if s.log {
		steps := []float64{1, 2, 5}
		if s.max/s.min > 2000 {
			steps = steps[:1]
		}
		for decade := math.Pow(10, math.Floor(math.Log10(s.min))); decade <= s.max; decade *= 10 {
			for _, step := range steps {
				if v := step * decade; v >= s.min*(1-1e-9) && v <= s.max*(1+1e-9) {
					ticks = append(ticks, v)
				}
			}
		}
		return ticks
	}
	step := step125((s.max-s.min)/5, true)
	for i := 0; float64(i)*step <= s.max*(1+1e-9); i++ {
		ticks = append(ticks, float64(i)*step)
	}
	return ticks
}
