// SPDX-License-Identifier: Apache-2.0

package evict

import (
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Kind is the kind of a link.
type Kind uint8

// Kinds.
const (
	// Layer: the repository has the content as a blob.
	Layer Kind = iota
	// Revision: the repository has the content as a manifest.
	Revision
	// Tag: a tag of the repository points to the manifest, or has pointed to it. It does not make content referenced.
	Tag
)

// Link makes content visible in a repository.
type Link struct {
	Kind       Kind
	Repository string
	// Tag is set for links of kind Tag.
	Tag string
}

// Victim is an object that is evicted, with all links to it.
type Victim struct {
	Digest digest.Digest
	// Size is in bytes, 0 if only links exist.
	Size    int64
	LastUse time.Time
	Reason  Reason
	Links   []Link
}

// Record describes stored content.
type Record struct {
	Digest digest.Digest
	// Size is in bytes.
	Size    int64
	LastUse time.Time
	Links   []Link
}

// Stats are totals of an Index.
type Stats struct {
	// Objects is the number of objects with content, and Bytes is the size of their content.
	Objects int
	Bytes   int64
	// Removable estimates the bytes that these objects occupy on a file system, including directories and links.
	Removable int64
	// Pinned is the number of pins: of reads and writes in progress.
	Pinned int
}

// Estimated usage of a file system with blocks of 4 KiB, as ext4 and XFS have by default: content occupies whole blocks,
// and two links with the directories of content and links occupy at least four blocks.
const (
	blockSize   = 4 << 10
	linksBlocks = 4
)

// Index contains the objects of a volume: sizes, last uses, links and pins. An object is pinned while it is read or
// written; a pinned object is not evicted. An index can be used before it contains all objects of the volume: nothing is
// evicted until Complete is called.
//
// It is safe for concurrent use. Only Pin can block.
type Index struct {
	mu sync.Mutex // guards table
	table
}

// table is the part of an Index without the lock.
type table struct {
	policy   Policy
	objects  map[digest.Digest]*Object
	stats    Stats
	complete bool
}

// NewIndex returns an empty index, which becomes the only user of the policy.
func NewIndex(p Policy) *Index {
	return &Index{table: table{policy: p, objects: map[digest.Digest]*Object{}}}
}

// AddContent records content that exists on the volume. It does not change the size of stored content and never moves a
// last use backwards.
func (x *Index) AddContent(d digest.Digest, size int64, lastUse time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.get(d)
	if !o.Stored {
		x.setSize(o, size)
	}
	o.use(lastUse)
	x.update(o)
}

// Link records a link to the content. The content may be missing.
func (x *Index) Link(d digest.Digest, l Link) {
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.get(d)
	if !slices.Contains(o.links, l) {
		o.links = append(o.links, l)
	}
	o.uncertain = slices.DeleteFunc(o.uncertain, func(u Link) bool { return u == l })
	x.update(o)
}

// MarkLinkUncertain records that writing l has failed, so the file may not exist. The link no longer makes the content
// referenced, but is deleted with it. A later call of Link reverts this.
func (x *Index) MarkLinkUncertain(d digest.Digest, l Link) {
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.get(d)
	if slices.Contains(o.links, l) && !slices.Contains(o.uncertain, l) {
		o.uncertain = append(o.uncertain, l)
	}
	x.update(o)
}

// Complete records that the index contains all objects of the volume. It enables eviction.
func (x *Index) Complete() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.complete = true
}

// Pin prevents the eviction of the object until Unpin is called as often as Pin. It counts as a use. It waits while the object is
// being removed, for limit at most, and then returns false, without effect.
func (x *Index) Pin(d digest.Digest, now time.Time, limit time.Duration) bool {
	var expired <-chan time.Time // none without a wait
	for {
		x.mu.Lock()
		removing := x.pin(d, now)
		x.mu.Unlock()
		if removing == nil {
			return true
		}
		if expired == nil {
			expired = time.After(limit)
		}
		select {
		case <-removing:
		case <-expired:
			return false
		}
	}
}

// TryPin is Pin without waiting. It returns false, without effect, while the object is being removed.
func (x *Index) TryPin(d digest.Digest, now time.Time) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.pin(d, now) == nil
}

// Unpin reverts one call of Pin. The end of a read or write updates the last use.
func (x *Index) Unpin(d digest.Digest, now time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.get(d)
	o.pins--
	x.stats.Pinned--
	o.use(now)
	x.update(o)
}

// Use records a use that reads no file. It returns false, without effect, unless the content is stored with the link and
// not being removed.
func (x *Index) Use(d digest.Digest, l Link, now time.Time) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.objects[d]
	if o == nil || !o.Stored || o.removing != nil || !slices.Contains(o.links, l) {
		return false
	}
	o.use(now)
	x.policy.Use(o)
	x.update(o)
	return true
}

// SetStored records that the content of a pinned object is on the volume, with this size in bytes.
func (x *Index) SetStored(d digest.Digest, size int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.get(d)
	x.setSize(o, size)
	x.update(o)
}

// Size returns the size of stored content in bytes.
func (x *Index) Size(d digest.Digest) (size int64, stored bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if o := x.objects[d]; o != nil && o.Stored {
		return o.Size, true
	}
	return 0, false
}

// Next selects the next object to evict: the first one of the order of the policy. An object that is evicted only for
// space is selected only if needsSpace is true. The caller removes it and then calls RemovalDone or RemovalFailed. Next
// returns false if there is no such object. See Policy.Order for the meaning of now.
func (x *Index) Next(now time.Time, needsSpace bool) (Victim, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for o, reason := range x.order(now) {
		if reason.ForSpace() && !needsSpace {
			break
		}
		x.policy.Evict(o, reason)
		return x.startRemoval(o, reason), true
	}
	return Victim{}, false
}

// Take selects an object for deletion independently of the policy, even while it is pinned. It returns false if the
// object does not exist or is already being removed. The caller removes it and then calls RemovalDone or RemovalFailed.
func (x *Index) Take(d digest.Digest, reason Reason) (Victim, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.objects[d]
	if o == nil || o.removing != nil {
		return Victim{}, false
	}
	return x.startRemoval(o, reason), true
}

// RemovalDone ends a removal: nothing is left of the object on the volume. The pins of a pinned object stay.
func (x *Index) RemovalDone(d digest.Digest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if o := x.objects[d]; o != nil && o.removing != nil {
		o.endRemoval(false)
		o.links, o.uncertain = nil, nil
		x.unsetSize(o)
		x.update(o)
	}
}

// RemovalFailed ends a removal that could not delete all of the object. The object can be pinned again, but is not
// evicted before Retry is called.
func (x *Index) RemovalFailed(d digest.Digest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if o := x.objects[d]; o != nil && o.removing != nil {
		o.endRemoval(true)
		x.update(o)
	}
}

// Retry allows the eviction of an object after RemovalFailed.
func (x *Index) Retry(d digest.Digest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if o := x.objects[d]; o != nil {
		o.failed = false
		x.update(o)
	}
}

// Shift moves the last uses of all objects by d, but not beyond now. It corrects them after a step of the clock.
func (x *Index) Shift(d time.Duration, now time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, o := range x.objects {
		if o.LastUse = o.LastUse.Add(d); o.LastUse.After(now) {
			o.LastUse = now
		}
		x.update(o)
	}
}

// Records returns a record of each object with content, in no order.
func (x *Index) Records() []Record {
	x.mu.Lock()
	defer x.mu.Unlock()
	records := make([]Record, 0, len(x.objects))
	for _, o := range x.objects {
		if o.Stored {
			records = append(records, Record{o.Digest, o.Size, o.LastUse, slices.Clone(o.links)})
		}
	}
	return records
}

// Stats returns the totals.
func (x *Index) Stats() Stats {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.stats
}

// Oldest returns the last use of the least recently used object with content. It returns the zero time if no content is
// stored.
func (x *Index) Oldest() (oldest time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, o := range x.objects {
		if o.Stored && (oldest.IsZero() || o.LastUse.Before(oldest)) {
			oldest = o.LastUse
		}
	}
	return oldest
}

// order returns the order of the policy, which is empty before Complete.
func (t *table) order(now time.Time) iter.Seq2[*Object, Reason] {
	if !t.complete {
		return func(func(*Object, Reason) bool) {}
	}
	return t.policy.Order(now)
}

// pin pins the object, unless it is being removed: then it returns a channel that is closed when that has ended.
func (t *table) pin(d digest.Digest, now time.Time) (removing <-chan struct{}) {
	o := t.get(d)
	if o.removing != nil {
		return o.removing
	}
	o.pins++
	t.stats.Pinned++
	o.use(now)
	t.policy.Use(o)
	t.update(o)
	return nil
}

func (t *table) startRemoval(o *Object, reason Reason) Victim {
	v := o.victim(reason)
	o.removing = make(chan struct{})
	t.update(o)
	return v
}

// get returns the object and adds it if it is missing. The caller calls update.
func (t *table) get(d digest.Digest) *Object {
	o := t.objects[d]
	if o == nil {
		o = &Object{Digest: d}
		t.objects[d] = o
	}
	return o
}

// setSize makes the object one with content. The caller calls update.
func (t *table) setSize(o *Object, size int64) {
	t.unsetSize(o)
	o.Stored, o.Size = true, size
	t.stats.add(o, 1)
}

// unsetSize makes the object one without content. The caller calls update.
func (t *table) unsetSize(o *Object) {
	if o.Stored {
		t.stats.add(o, -1)
		o.Stored, o.Size = false, 0
	}
}

// update passes a changed object to the policy, or deletes it if nothing is left of it.
func (t *table) update(o *Object) {
	o.Idle = o.pins == 0 && o.removing == nil && !o.failed
	o.Referenced = o.Stored && slices.ContainsFunc(o.links, func(l Link) bool { return l.Kind != Tag && !slices.Contains(o.uncertain, l) })
	if o.Idle && !o.Stored && len(o.links) == 0 {
		t.policy.Remove(o)
		delete(t.objects, o.Digest)
		return
	}
	t.policy.Update(o)
}

func (o *Object) use(at time.Time) {
	if at.After(o.LastUse) {
		o.LastUse = at
	}
}

func (o *Object) victim(reason Reason) Victim {
	return Victim{Digest: o.Digest, Size: o.Size, LastUse: o.LastUse, Reason: reason, Links: slices.Clone(o.links)}
}

func (o *Object) endRemoval(failed bool) {
	close(o.removing)
	o.removing, o.failed = nil, failed
}

func (s *Stats) add(o *Object, n int) {
	s.Objects += n
	s.Bytes += int64(n) * o.Size
	s.Removable += int64(n) * ((o.Size+blockSize-1)/blockSize + linksBlocks) * blockSize
}
