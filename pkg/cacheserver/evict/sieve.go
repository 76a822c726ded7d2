// SPDX-License-Identifier: Apache-2.0

package evict

import (
	"iter"
	"time"
)

// Sieve is a Policy that uses SIEVE instead of LRU when space is needed: Zhang, Yang, Yue, Vigfusson and Rashmi, "SIEVE is
// Simpler than LRU: an Efficient Turn-Key Eviction Algorithm for Web Caches", NSDI 2024, algorithm 1. New objects enter
// a queue at its head. A use sets a bit and does not move the object. A hand moves from the tail to the head, clears set
// bits, and stops at the first object without the bit. Unlike LRU, one scan over content that is pulled once does not
// evict content that is pulled often. Unreferenced and expired objects are evicted first, as with LRU.
type Sieve struct {
	classes
	head, tail *sieveNode
	hand       *sieveNode // the next object to check, nil for the tail
}

// sieveNode is a position in the queue. An object keeps its position while it is pinned.
type sieveNode struct {
	object       *Object
	newer, older *sieveNode
	used         bool // "visited" in the paper
}

// NewSieve returns an empty Sieve. See NewLRU for ttl.
func NewSieve(ttl time.Duration) *Sieve { return &Sieve{classes: classes{ttl: ttl}} }

// Update implements Policy.
func (p *Sieve) Update(o *Object) {
	p.update(o)
	switch {
	case o.Stored && o.node == nil:
		p.insert(o)
	case !o.Stored && o.node != nil:
		p.unlink(o)
	}
}

// Use implements Policy.
func (p *Sieve) Use(o *Object) {
	if o.node != nil {
		o.node.used = true
	}
}

// Evict implements Policy. It moves the hand behind the object and clears the bits of the objects that the hand passes.
func (p *Sieve) Evict(o *Object, reason Reason) {
	if reason != Sieved {
		return
	}
	if o.node.used {
		// The hand has passed all objects once.
		for n := p.tail; n != nil; n = n.newer {
			p.pass(n)
		}
	}
	for n := p.start(); n != o.node; n = p.next(n) {
		p.pass(n)
	}
	p.hand = o.node.newer
}

// Remove implements Policy.
func (p *Sieve) Remove(o *Object) {
	p.remove(o)
	if o.node != nil {
		p.unlink(o)
	}
}

// Order implements Policy.
func (p *Sieve) Order(now time.Time) iter.Seq2[*Object, Reason] {
	return func(yield func(*Object, Reason) bool) {
		if p.ttl <= 0 || !p.yieldUnreferenced(yield) {
			return
		}
		for o := range p.referenced.sorted() {
			if !p.expired(o, now) {
				break
			}
			if !yield(o, Expired) {
				return
			}
		}
		for o := range p.selected() {
			if !p.expired(o, now) && !yield(o, Sieved) {
				return
			}
		}
	}
}

// selected returns the objects in the order in which the hand selects them: in the first round those without the bit, in
// the second round all others, because the first round has cleared their bits.
func (p *Sieve) selected() iter.Seq[*Object] {
	return func(yield func(*Object) bool) {
		for _, used := range []bool{false, true} {
			for n, first := p.start(), true; n != nil && (first || n != p.start()); n, first = p.next(n), false {
				if p.selectable(n) && n.used == used && !yield(n.object) {
					return
				}
			}
		}
	}
}

// pass clears the bit of a node that the hand has passed. Objects that cannot be evicted now keep their bit.
func (p *Sieve) pass(n *sieveNode) {
	if p.selectable(n) {
		n.used = false
	}
}

func (p *Sieve) selectable(n *sieveNode) bool { return n.object.Idle && n.object.Referenced }

// start returns the node at the hand, nil if the queue is empty.
func (p *Sieve) start() *sieveNode {
	if p.hand == nil {
		return p.tail
	}
	return p.hand
}

// next returns the node that follows in the direction of the hand, which continues at the tail after the head.
func (p *Sieve) next(n *sieveNode) *sieveNode {
	if n.newer == nil {
		return p.tail
	}
	return n.newer
}

func (p *Sieve) insert(o *Object) {
	n := &sieveNode{object: o, older: p.head}
	o.node = n
	if p.head == nil {
		p.tail = n
	} else {
		p.head.newer = n
	}
	p.head = n
}

func (p *Sieve) unlink(o *Object) {
	n := o.node
	o.node = nil
	if p.hand == n {
		p.hand = n.newer // nil after the head: the hand continues at the tail
	}
	if n.older == nil {
		p.tail = n.newer
	} else {
		n.older.newer = n.newer
	}
	if n.newer == nil {
		p.head = n.older
	} else {
		n.newer.older = n.older
	}
}
