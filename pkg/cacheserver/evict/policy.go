// SPDX-License-Identifier: Apache-2.0

package evict

import (
	"iter"
	"time"

	"github.com/opencontainers/go-digest"
)

// Object is one object of an index: content, the links to it, or both. A Policy reads it and does not change it.
type Object struct {
	Digest digest.Digest
	// Size is the size of the content in bytes, 0 unless Stored.
	Size int64
	// LastUse is the time of the last use. It is zero if no use is recorded.
	LastUse time.Time
	// Stored is true if the content is on the volume. Otherwise the object consists of links only.
	Stored bool
	// Referenced is true if a repository can serve the content: it is stored, and a link of kind Layer or Revision exists.
	Referenced bool
	// Idle is true if the object is not pinned and not being removed. Only idle objects can be evicted.
	Idle bool

	// The following fields belong to the Index.
	links     []Link
	uncertain []Link // those of the links whose file may not exist
	pins      int
	removing  chan struct{} // closed when the removal in progress has ended; nil if there is none
	failed    bool          // the last removal failed, and Retry was not called yet

	// The following fields belong to the Policy.
	heap     *useHeap // the heap that contains the object, nil if none
	position int      // its position in heap
	node     *sieveNode
}

// Policy defines the order of eviction. It is the only definition of that order: Index.Next evicts in this order, and
// Index.Forecast reports it. An Index calls the methods while it holds its lock, so an implementation needs no lock
// and must not call the Index. A Policy serves one Index.
type Policy interface {
	// Update records that an object was added, or that one of its exported fields has changed.
	Update(o *Object)
	// Use records a use of an object that Update has added. Update follows.
	Use(o *Object)
	// Evict records that the first object of Order is evicted for the reason in Order. Update follows, with Idle = false.
	Evict(o *Object, reason Reason)
	// Remove deletes an object from the policy.
	Remove(o *Object)
	// Order returns all idle objects in the order of their eviction at the time now, each with its reason. Objects with
	// the reason Unreferenced or Expired come first; they are evicted in any case, all other objects only if space is
	// needed. A zero time means that the current time is unknown: no object is Expired. The order is empty if the policy
	// never evicts. Order changes nothing. Eviction of the first object must not change the order of the others. The
	// first object must be available in at most logarithmic time.
	Order(now time.Time) iter.Seq2[*Object, Reason]
}

// Reason is the reason of an eviction. It is a label value of metrics and a value in the output of inspect.
type Reason string

// Reasons.
const (
	// Unreferenced: content without a link of a repository, or links without content. The cache can serve neither.
	Unreferenced Reason = "unreferenced"
	// Expired: the object was not used for the TTL.
	Expired Reason = "expired"
	// LeastRecentlyUsed: space is needed, and no other object was unused for longer.
	LeastRecentlyUsed Reason = "least-recently-used"
	// Sieved: space is needed, and SIEVE has selected the object.
	Sieved Reason = "sieve"
	// Corrupt: the content does not have its digest or its size, or cannot be read. A Policy does not return this reason.
	Corrupt Reason = "corrupt"
)

// Reasons returns all reasons for which a cache with the default policy deletes objects.
func Reasons() []Reason { return []Reason{Unreferenced, Expired, LeastRecentlyUsed, Corrupt} }

// ForSpace reports whether objects with this reason are evicted only if space is needed.
func (r Reason) ForSpace() bool { return r == LeastRecentlyUsed || r == Sieved }
