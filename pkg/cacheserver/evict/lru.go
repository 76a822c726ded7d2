// SPDX-License-Identifier: Apache-2.0

package evict

import (
	"cmp"
	"container/heap"
	"iter"
	"slices"
	"strings"
	"time"
)

// LRU is the default Policy: unreferenced objects first, then expired objects, then the least recently used objects.
type LRU struct{ classes }

// NewLRU returns an empty LRU. Objects expire when they were not used for ttl. A ttl of 0 or less means that nothing is
// ever evicted.
func NewLRU(ttl time.Duration) *LRU { return &LRU{classes{ttl: ttl}} }

// Update implements Policy.
func (p *LRU) Update(o *Object) { p.update(o) }

// Use implements Policy. The order depends only on the last use, which Update reads.
func (p *LRU) Use(*Object) {}

// Evict implements Policy.
func (p *LRU) Evict(*Object, Reason) {}

// Remove implements Policy.
func (p *LRU) Remove(o *Object) { p.remove(o) }

// Order implements Policy.
func (p *LRU) Order(now time.Time) iter.Seq2[*Object, Reason] {
	return func(yield func(*Object, Reason) bool) {
		if p.ttl <= 0 || !p.yieldUnreferenced(yield) {
			return
		}
		for o := range p.referenced.sorted() {
			reason := LeastRecentlyUsed
			if p.expired(o, now) {
				reason = Expired
			}
			if !yield(o, reason) {
				return
			}
		}
	}
}

// classes divides the idle objects into unreferenced and referenced ones, and sorts both by their last use. All
// policies share this part.
type classes struct {
	ttl                      time.Duration
	unreferenced, referenced useHeap
}

func (c *classes) update(o *Object) {
	var target *useHeap
	switch {
	case !o.Idle:
	case o.Referenced:
		target = &c.referenced
	default:
		target = &c.unreferenced
	}
	if o.heap == target {
		if target != nil {
			heap.Fix(target, o.position)
		}
		return
	}
	c.remove(o)
	if target != nil {
		o.heap = target
		heap.Push(target, o)
	}
}

func (c *classes) remove(o *Object) {
	if o.heap != nil {
		heap.Remove(o.heap, o.position)
		o.heap = nil
	}
}

// yieldUnreferenced returns false if yield has returned false.
func (c *classes) yieldUnreferenced(yield func(*Object, Reason) bool) bool {
	for o := range c.unreferenced.sorted() {
		if !yield(o, Unreferenced) {
			return false
		}
	}
	return true
}

func (c *classes) expired(o *Object, now time.Time) bool {
	return !now.IsZero() && now.Sub(o.LastUse) >= c.ttl
}

// useHeap contains the least recently used object first. It implements heap.Interface.
type useHeap []*Object

func (h useHeap) Len() int           { return len(h) }
func (h useHeap) Less(i, j int) bool { return compareUse(h[i], h[j]) < 0 }

func (h useHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].position, h[j].position = i, j
}

func (h *useHeap) Push(o any) {
	o.(*Object).position = len(*h)
	*h = append(*h, o.(*Object))
}

func (h *useHeap) Pop() any {
	last := len(*h) - 1
	o := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return o
}

// sorted returns the objects in ascending order of their last use. Only the first one is cheap: the rest is sorted when
// it is requested.
func (h useHeap) sorted() iter.Seq[*Object] {
	return func(yield func(*Object) bool) {
		if len(h) == 0 || !yield(h[0]) {
			return
		}
		rest := slices.Clone(h[1:])
		slices.SortFunc(rest, compareUse)
		for _, o := range rest {
			if !yield(o) {
				return
			}
		}
	}
}

// compareUse orders by the last use. The digest makes the order unique.
func compareUse(a, b *Object) int {
	return cmp.Or(a.LastUse.Compare(b.LastUse), strings.Compare(string(a.Digest), string(b.Digest)))
}
