// SPDX-License-Identifier: Apache-2.0

package evict

import (
	"container/heap"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Kind is what a link means.
type Kind uint8

// Kinds.
const (
	// Layer: the repository has the content as a blob.
	Layer Kind = iota
	// Revision: the repository has the content as a manifest.
	Revision
	// Tag: a tag of the repository names the manifest, or has named it before. It does not keep the content.
	Tag
)

// Link is what makes content visible in a repository.
type Link struct {
	Kind       Kind
	Repository string
	// Tag is set for links of kind Tag.
	Tag string
}

// Victim is content that goes, with everything that links to it.
type Victim struct {
	Digest digest.Digest
	// Size is in bytes; 0 where only links are there.
	Size    int64
	LastUse time.Time
	Reason  Reason
	Links   []Link
}

// Use is the last use of an object, and what links to it.
type Use struct {
	Digest  digest.Digest
	LastUse time.Time
	Links   []Link
}

// Index knows the objects of a volume: their sizes, when they were used, what links to them, and who holds them. An
// object is held while it is read or written, and goes only when nobody holds it. The index may be used before it
// knows everything: until Complete nothing goes.
//
// It is safe for concurrent use. No call but Hold waits for anything.
type Index struct {
	mu       sync.Mutex // guards what follows
	objects  map[digest.Digest]*object
	idle     idleHeap  // what is stored and nobody holds
	garbage  []*object // was unreferenced when it was put there
	complete bool
}

// object is content, or the links to content that is not there.
type object struct {
	digest  digest.Digest
	stored  bool
	size    int64
	lastUse time.Time
	links   []Link
	// doubtful are those of the links that may not be there.
	doubtful []Link
	holders  int
	// removing is closed when the removal that goes on has ended; nil if none does.
	removing chan struct{}
	// queued says that it is among the garbage.
	queued bool
	// position in the heap, -1 outside of it.
	position int
}

// NewIndex returns an empty index.
func NewIndex() *Index { return &Index{objects: map[digest.Digest]*object{}} }

// Found tells about content that is on the volume. Later knowledge stays: a last use goes forward only.
func (x *Index) Found(d digest.Digest, size int64, lastUse time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.get(d)
	if !o.stored {
		o.stored, o.size = true, size
	}
	o.use(lastUse)
	x.settle(o)
}

// Link tells about a link to the content, which may be known or not.
func (x *Index) Link(d digest.Digest, l Link) {
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.get(d)
	if !slices.Contains(o.links, l) {
		o.links = append(o.links, l)
	}
	o.doubtful = slices.DeleteFunc(o.doubtful, func(known Link) bool { return known == l })
	x.settle(o)
}

// Doubt tells that a link may not be there after all, because making it failed. It does not keep the content from going
// until Link tells about it again, but goes with it.
func (x *Index) Doubt(d digest.Digest, l Link) {
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.get(d)
	if slices.Contains(o.links, l) && !slices.Contains(o.doubtful, l) {
		o.doubtful = append(o.doubtful, l)
	}
	x.settle(o)
}

// Complete says that everything on the volume has been told, so that what lacks content or links is garbage from now
// on.
func (x *Index) Complete() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.complete = true
	for _, o := range x.objects {
		x.settle(o)
	}
}

// Hold keeps the object from going until Release is called as often. It waits while the object is being removed. Holding
// an object is using it.
func (x *Index) Hold(d digest.Digest, now time.Time) {
	for {
		x.mu.Lock()
		o := x.get(d)
		removing := o.removing
		if removing == nil {
			o.holders++
			o.use(now)
			x.settle(o)
		}
		x.mu.Unlock()
		if removing == nil {
			return
		}
		<-removing
	}
}

// Use is a use of content that needs no file, if the content is on the volume, has the link and is not about to go.
func (x *Index) Use(d digest.Digest, l Link, now time.Time) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.objects[d]
	if o == nil || !o.stored || o.removing != nil || !slices.Contains(o.links, l) {
		return false
	}
	o.use(now)
	x.settle(o)
	return true
}

// Stored tells that the content of a held object is on the volume now.
func (x *Index) Stored(d digest.Digest, size int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.get(d)
	o.stored, o.size = true, size
	x.settle(o)
}

// Release ends a Hold.
func (x *Index) Release(d digest.Digest, now time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.get(d)
	o.holders--
	o.use(now)
	x.settle(o)
}

// Next returns what goes next: what cannot be served, then what was not used for the TTL, then, if space is needed, what
// was not used for longest. The caller removes it and calls Removed or Kept. It returns false when nothing has to go, or
// may.
func (x *Index) Next(now time.Time, p Policy, needsSpace bool) (Victim, bool) {
	if p.TTL <= 0 {
		return Victim{}, false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.complete {
		return Victim{}, false
	}
	for len(x.garbage) > 0 {
		last := len(x.garbage) - 1
		o := x.garbage[last]
		x.garbage[last], x.garbage = nil, x.garbage[:last]
		o.queued = false
		if x.objects[o.digest] != o || !o.idle() {
			continue
		}
		if why := p.due(o, now, false); why == Unreferenced {
			return x.take(o, why), true
		}
	}
	if len(x.idle) == 0 {
		return Victim{}, false
	}
	oldest := x.idle[0]
	if why := p.due(oldest, now, needsSpace); why != "" {
		return x.take(oldest, why), true
	}
	return Victim{}, false
}

func (x *Index) take(o *object, why Reason) Victim {
	o.removing = make(chan struct{})
	x.settle(o)
	return o.victim(why)
}

func (o *object) victim(why Reason) Victim {
	v := Victim{Digest: o.digest, LastUse: o.lastUse, Reason: why, Links: slices.Clone(o.links)}
	if o.stored {
		v.Size = o.size
	}
	return v
}

// Removed ends the removal that Next began: nothing is left of the victim.
func (x *Index) Removed(d digest.Digest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if o := x.objects[d]; o != nil && o.removing != nil {
		close(o.removing)
		delete(x.objects, d)
	}
}

// Kept ends the removal that Next began without its success. The object may be held while what is left of it is found
// out; it goes again no earlier than Retry is called.
func (x *Index) Kept(d digest.Digest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if o := x.objects[d]; o != nil && o.removing != nil {
		close(o.removing)
		o.removing = nil
	}
}

// Retry makes an object that was Kept go again.
func (x *Index) Retry(d digest.Digest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if o := x.objects[d]; o != nil {
		x.settle(o)
	}
}

// Uses returns the last use of all that is stored, in no order.
func (x *Index) Uses() []Use {
	x.mu.Lock()
	defer x.mu.Unlock()
	uses := make([]Use, 0, len(x.objects))
	for _, o := range x.objects {
		if o.stored {
			uses = append(uses, Use{o.digest, o.lastUse, slices.Clone(o.links)})
		}
	}
	return uses
}

// Oldest returns the last use of what was not used for longest. It returns false where nothing is stored that nobody
// holds.
func (x *Index) Oldest() (time.Time, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.idle) == 0 {
		return time.Time{}, false
	}
	return x.idle[0].lastUse, true
}

// get returns the object, making it if it is not there. The caller holds the lock and calls settle.
func (x *Index) get(d digest.Digest) *object {
	o := x.objects[d]
	if o == nil {
		o = &object{digest: d, position: -1}
		x.objects[d] = o
	}
	return o
}

// settle puts the object where it belongs after a change. The caller holds the lock.
func (x *Index) settle(o *object) {
	idle := o.idle()
	switch {
	case idle && o.stored && o.position < 0:
		heap.Push(&x.idle, o)
	case idle && o.stored:
		heap.Fix(&x.idle, o.position)
	case o.position >= 0:
		heap.Remove(&x.idle, o.position)
	}
	switch {
	case !idle:
	case !o.stored && len(o.links) == 0:
		delete(x.objects, o.digest)
	case x.complete && !o.queued && o.unreferenced():
		o.queued = true
		x.garbage = append(x.garbage, o)
	}
}

func (o *object) use(t time.Time) {
	if t.After(o.lastUse) {
		o.lastUse = t
	}
}

// idle says that nobody holds the object or is about to remove it.
func (o *object) idle() bool { return o.holders == 0 && o.removing == nil }

// unreferenced says that nothing can be served from the object.
func (o *object) unreferenced() bool {
	return !o.stored || !slices.ContainsFunc(o.links, func(l Link) bool { return l.Kind != Tag && !slices.Contains(o.doubtful, l) })
}

// idleHeap has the least recently used object first. It implements heap.Interface.
type idleHeap []*object

func (h idleHeap) Len() int           { return len(h) }
func (h idleHeap) Less(i, j int) bool { return h[i].lastUse.Before(h[j].lastUse) }

func (h idleHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].position, h[j].position = i, j
}

func (h *idleHeap) Push(o any) {
	o.(*object).position = len(*h)
	*h = append(*h, o.(*object))
}

func (h *idleHeap) Pop() any {
	last := len(*h) - 1
	o := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	o.position = -1
	return o
}
