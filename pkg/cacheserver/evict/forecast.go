// SPDX-License-Identifier: Apache-2.0

package evict

import (
	"slices"
	"time"
)

// Candidate is an object with its expected eviction. Reason is empty if the object survives the next eviction.
type Candidate struct {
	Victim
	// Stored is true if the content is on the volume. Otherwise only links exist, and Size is 0.
	Stored bool
	// Now is true if Next would select the object now. A reason that is only for space, without Now, means: as soon as the
	// volume reaches the high watermark.
	Now bool
	// Rank is the position in the eviction order, from 1. 0 means that the object is not evicted: eviction is disabled, or
	// the object is pinned.
	Rank int
	// Expires is the last use plus the TTL. It is zero if Rank is 0 or Stored is false.
	Expires time.Time
}

// Forecast returns all objects in the order of their eviction, and last the objects that are not evicted. It changes
// nothing. The usage decides how many objects are evicted for space: those that are due now if it has reached the high
// watermark, otherwise those that will be due when it reaches the high watermark and nothing else has changed. A usage
// without limits requires no space. The fields Own, Removable and Objects of the usage are replaced by those of the
// index.
func (x *Index) Forecast(now time.Time, l Limits, u Usage) []Candidate {
	x.mu.Lock()
	defer x.mu.Unlock()
	u.Own, u.Removable, u.Objects = x.stats.Bytes, x.stats.Removable, x.stats.Objects
	need := l.Need(u, false)
	full := need != Need{}
	if !full {
		need = l.needAtHighWatermark(u)
	}
	candidates := make([]Candidate, 0, len(x.objects))
	ranked := make(map[*Object]bool, len(x.objects))
	var bytes int64
	var objects int
	for o, reason := range x.order(now) {
		c := Candidate{Victim: o.victim(reason), Stored: o.Stored, Rank: len(candidates) + 1, Now: true}
		if o.Stored {
			c.Expires = o.LastUse.Add(l.TTL)
		}
		if reason.ForSpace() {
			c.Now = full
			if need.SatisfiedBy(bytes, objects) {
				c.Reason, c.Now = "", false
			}
		}
		// Objects that are deleted in any case free no space for content that arrives later.
		if full || c.Reason.ForSpace() {
			bytes, objects = bytes+o.Size, objects+1
		}
		candidates = append(candidates, c)
		ranked[o] = true
	}
	var others []*Object
	for _, o := range x.objects {
		if !ranked[o] {
			others = append(others, o)
		}
	}
	slices.SortFunc(others, compareUse)
	for _, o := range others {
		candidates = append(candidates, Candidate{Victim: o.victim(""), Stored: o.Stored})
	}
	return candidates
}
