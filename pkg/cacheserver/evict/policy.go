// SPDX-License-Identifier: Apache-2.0

// Package evict decides what leaves a volume, when and why. It does no I/O: it is told what is there, when it was used
// and how full the volume is, and says what to remove next.
package evict

import "time"

// Policy says when unused objects go.
type Policy struct {
	// TTL is the time since its last use after which an object goes. 0 or less means that nothing ever goes, whatever
	// the watermarks are.
	TTL time.Duration
	// HighWatermark is the used share of the volume, in percent, at which the objects that were not used for longest
	// begin to go.
	HighWatermark int
	// LowWatermark is the used share, in percent, at which that ends.
	LowWatermark int
}

// Volume is how full a volume is, by everything on it. Both are bytes.
type Volume struct {
	Used  int64
	Limit int64
}

// Excess returns the bytes by which the volume is above the low watermark. It is 0 unless the high watermark is
// reached, or a write has just failed because the volume was full, and it is 0 if nothing may go.
func (p Policy) Excess(v Volume, full bool) int64 {
	if p.TTL <= 0 || !full && v.Used < share(v.Limit, p.HighWatermark) {
		return 0
	}
	return max(v.Used-share(v.Limit, p.LowWatermark), 0)
}

// Fits says whether room for an object of this size, in bytes, may be made by removing others: it must be allowed to
// remove something, and the object must be small enough to stay.
func (p Policy) Fits(v Volume, size int64) bool {
	return p.TTL > 0 && size <= share(v.Limit, p.LowWatermark)
}

// share returns the percentage of limit without overflowing.
func share(limit int64, percent int) int64 {
	return limit/100*int64(percent) + limit%100*int64(percent)/100
}

// Reason says why something goes.
type Reason string

// Reasons.
const (
	// Unreferenced: content that no repository has, or links whose content is gone. Nothing can be served from either.
	Unreferenced Reason = "unreferenced"
	// Expired: not used for the TTL.
	Expired Reason = "expired"
	// LeastRecentlyUsed: the volume is too full, and nothing else was unused for longer.
	LeastRecentlyUsed Reason = "least-recently-used"
)

// due returns why an object that nobody holds goes now, or "" if it stays.
func (p Policy) due(o *object, now time.Time, needsSpace bool) Reason {
	switch {
	case p.TTL <= 0:
		return ""
	case o.unreferenced():
		return Unreferenced
	case now.Sub(o.lastUse) >= p.TTL:
		return Expired
	case needsSpace:
		return LeastRecentlyUsed
	}
	return ""
}

// Reasons returns all reasons.
func Reasons() []Reason { return []Reason{Unreferenced, Expired, LeastRecentlyUsed} }
