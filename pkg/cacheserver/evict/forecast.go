// SPDX-License-Identifier: Apache-2.0

package evict

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Prospect is what is to be expected for an object. Its Reason is "" where the object outlives the next eviction.
type Prospect struct {
	Victim
	// Stored says that content is there. Otherwise there are links only, and Size is 0.
	Stored bool
	// Now says that Next would return the object now. Reason LeastRecentlyUsed without it means: as soon as the volume
	// reaches the high watermark.
	Now bool
	// Rank is the place in the order in which objects go, from 1. 0 means that it never goes: the policy deletes
	// nothing, or somebody holds it.
	Rank int
	// Expires is when the TTL since its last use ends. It is zero where Rank or Stored is.
	Expires time.Time
}

// Forecast returns all objects, first what Next would return first, and changes nothing. The volume decides how many are
// least recently used: those that have to go now if it has reached the high watermark, or else those that go when it
// does while all else is as it is now. A volume without a limit asks for no space.
func (x *Index) Forecast(now time.Time, p Policy, v Volume) []Prospect {
	excess := p.Excess(v, false)
	over := excess > 0
	if !over {
		excess = p.Excess(Volume{Used: share(v.Limit, p.HighWatermark), Limit: v.Limit}, false)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.complete {
		p.TTL = 0
	}
	objects := make([]*object, 0, len(x.objects))
	for _, o := range x.objects {
		objects = append(objects, o)
	}
	slices.SortFunc(objects, func(a, b *object) int {
		return cmp.Or(cmp.Compare(p.class(a), p.class(b)), a.lastUse.Compare(b.lastUse), strings.Compare(string(a.digest), string(b.digest)))
	})
	prospects := make([]Prospect, len(objects))
	var freed int64
	for i, o := range objects {
		f := &prospects[i]
		f.Stored = o.stored
		if p.TTL <= 0 || !o.idle() {
			f.Victim = o.victim("")
			continue
		}
		f.Victim, f.Rank = o.victim(p.due(o, now, freed < excess)), i+1
		if o.stored {
			f.Expires = o.lastUse.Add(p.TTL)
		}
		f.Now = over && f.Reason == LeastRecentlyUsed || f.Reason == Unreferenced || f.Reason == Expired
		// What goes anyway makes no room for what comes until the high watermark is reached.
		if over || f.Reason == LeastRecentlyUsed {
			freed += f.Size
		}
	}
	return prospects
}

// class orders what goes before what may be used, and that before what cannot go.
func (p Policy) class(o *object) int {
	switch {
	case !o.idle():
		return 2
	case p.TTL > 0 && o.unreferenced():
		return 0
	}
	return 1
}
