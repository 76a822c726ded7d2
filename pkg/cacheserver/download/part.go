// SPDX-License-Identifier: Apache-2.0

package download

// alignment widens the ranges of readers, in bytes. Clients that load an image lazily read many small ranges near to each
// other.
const alignment = 256 << 10

// Part is the part of a blob that a reader requests. The zero value is the whole blob.
type Part struct {
	// First is the offset of the first byte.
	First int64
	// Length is the number of bytes from First on. 0 means all.
	Length int64
	// Suffix requests the last bytes instead, if it is not 0.
	Suffix int64
}

// Start returns the offset of the first byte in a blob of this size, in bytes; a negative size is unknown.
func (p Part) Start(size int64) int64 {
	if size < 0 {
		return p.First
	}
	return p.span(size).Start
}

// firstByte returns the offset of the first byte that a client gets: 0 if the part begins behind the end, because then it
// gets an error of the HTTP server.
func (p Part) firstByte(size int64) int64 {
	start := p.Start(size)
	if size >= 0 && start >= size {
		return 0
	}
	return start
}

// endBehind returns the end of the part if it is behind the offset and before the end of a blob of this size, or else 0. If
// the size is unknown, which a negative one means, clients get the whole blob.
func (p Part) endBehind(offset, size int64) int64 {
	if size < 0 {
		return 0
	}
	if end := p.span(size).End; offset < end && end < size {
		return end
	}
	return 0
}

// span returns the part of a blob of this size.
func (p Part) span(size int64) Span {
	switch {
	case p.Suffix > 0:
		return Span{max(size-p.Suffix, 0), size}
	case p.Length > 0 && p.Length < size-p.First:
		return Span{p.First, p.First + p.Length}
	}
	return Span{min(p.First, size), size}
}

// aligned returns the part that is transferred for a reader. Its end is -1 if it is the end of a blob of unknown size.
func (p Part) aligned(size int64) Span {
	if size < 0 {
		s := Span{p.First - p.First%alignment, -1}
		if p.Length > 0 {
			s.End = (p.First + p.Length + alignment - 1) / alignment * alignment
		}
		return s
	}
	s := p.span(size)
	return Span{s.Start - s.Start%alignment, min((s.End+alignment-1)/alignment*alignment, size)}
}

// complete reports that the part consists of all bytes of the blob after the alignment.
func (p Part) complete() bool { return p.First < alignment && p.Length == 0 && p.Suffix == 0 }
