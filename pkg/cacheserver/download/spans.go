// SPDX-License-Identifier: Apache-2.0

package download

import "slices"

// Span is the bytes from Start up to, and without, End. Both are offsets in a blob, in bytes.
type Span struct{ Start, End int64 }

func (s Span) empty() bool { return s.Start >= s.End }

func (s Span) contains(offset int64) bool { return s.Start <= offset && offset < s.End }

// spans is a set of bytes of a blob: spans in ascending order that neither overlap nor touch. The zero value is empty. It
// is not safe for concurrent use.
type spans []Span

// add adds the bytes of a span.
func (s *spans) add(added Span) {
	if added.empty() {
		return
	}
	// The spans from first up to last touch the added one and are replaced by their union.
	first, _ := slices.BinarySearchFunc(*s, added.Start, func(known Span, start int64) int {
		if known.End < start {
			return -1
		}
		return 1
	})
	last := first
	for last < len(*s) && (*s)[last].Start <= added.End {
		added.Start = min(added.Start, (*s)[last].Start)
		added.End = max(added.End, (*s)[last].End)
		last++
	}
	// A new slice, because copies of the old one are read without the lock of the download.
	*s = slices.Concat((*s)[:first], spans{added}, (*s)[last:])
}

// endAt returns the end of the span that contains offset, or offset if none does.
func (s spans) endAt(offset int64) int64 {
	for _, known := range s {
		if known.Start <= offset && offset < known.End {
			return known.End
		}
	}
	return offset
}

// startAfter returns the start of the first span at or behind offset, or limit if there is none before limit.
func (s spans) startAfter(offset, limit int64) int64 {
	for _, known := range s {
		if known.Start >= offset {
			return min(known.Start, limit)
		}
	}
	return limit
}

// firstGap returns the first missing bytes within a span. The result is empty if none are missing.
func (s spans) firstGap(within Span) Span {
	start := min(s.endAt(within.Start), within.End)
	return Span{start, s.startAfter(start, within.End)}
}

// bytes returns the number of bytes in the set.
func (s spans) bytes() int64 {
	var n int64
	for _, known := range s {
		n += known.End - known.Start
	}
	return n
}

// pairs returns the set as offsets of the first byte and of the byte behind the last one.
func (s spans) pairs() [][2]int64 {
	pairs := make([][2]int64, len(s))
	for i, known := range s {
		pairs[i] = [2]int64{known.Start, known.End}
	}
	return pairs
}

// load adds the bytes of pairs.
func (s *spans) load(pairs [][2]int64) {
	for _, pair := range pairs {
		s.add(Span{pair[0], pair[1]})
	}
}
