// SPDX-License-Identifier: Apache-2.0

package evict

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

var (
	start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	layer = Link{Kind: Layer, Repository: "library/alpine"}
)

func name(n int) digest.Digest { return digest.FromString(fmt.Sprint(n)) }

// TestPolicies runs the conformance tests with each policy.
func TestPolicies(t *testing.T) {
	t.Parallel()
	for _, suite := range []suite{
		{"LRU", func(ttl time.Duration) Policy { return NewLRU(ttl) }, LeastRecentlyUsed, func() model { return &lruModel{} }},
		{"SIEVE", func(ttl time.Duration) Policy { return NewSieve(ttl) }, Sieved, func() model { return &sieveModel{} }},
	} {
		t.Run(suite.name, func(t *testing.T) {
			t.Parallel()
			for name, test := range map[string]func(*testing.T){
				"SlidingTTL":             suite.slidingTTL,
				"UnknownTime":            suite.unknownTime,
				"Unreferenced":           suite.unreferenced,
				"UncertainLink":          suite.uncertainLink,
				"FailedRemoval":          suite.failedRemoval,
				"PinWaitsForRemoval":     suite.pinWaitsForRemoval,
				"Take":                   suite.take,
				"UseWithoutFile":         suite.useWithoutFile,
				"Shift":                  suite.shift,
				"RandomOperations":       suite.randomOperations,
				"ForecastIsWhatNextDoes": suite.forecastIsWhatNextDoes,
				"EvictionKeepsTheOrder":  suite.evictionKeepsTheOrder,
				"OrderChangesNothing":    suite.orderChangesNothing,
				"NothingWithoutTTL":      suite.nothingWithoutTTL,
				"StatsFollowTheContent":  suite.statsFollowTheContent,
			} {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					test(t)
				})
			}
		})
	}
}

// suite contains the conformance tests of a Policy.
type suite struct {
	name  string
	new   func(ttl time.Duration) Policy
	space Reason // the reason of evictions for space
	model func() model
}

// model is a simple implementation of the order in which a policy evicts for space.
type model interface {
	// insert adds an object, use records the start of a use, unpin its end, remove deletes an object.
	insert(d digest.Digest, at time.Time)
	use(d digest.Digest, at time.Time)
	unpin(d digest.Digest, at time.Time)
	remove(d digest.Digest)
	// next returns the object to evict for space among those that selectable returns true for, "" if there is none.
	next(selectable func(digest.Digest) bool) digest.Digest
}

func (s suite) index() *Index { return NewIndex(s.new(limits.TTL)) }

// drain evicts everything that is due.
func drain(x *Index, now time.Time, need int64) (victims []Victim) {
	var freed int64
	for {
		v, ok := x.Next(now, freed < need)
		if !ok {
			return victims
		}
		freed += v.Size
		x.RemovalDone(v.Digest)
		victims = append(victims, v)
	}
}

func (s suite) slidingTTL(t *testing.T) {
	x := s.index()
	for n := range 2 {
		x.AddContent(name(n), 1, start)
		x.Link(name(n), layer)
	}
	later := start.Add(time.Hour - 1)
	if v, ok := x.Next(start.Add(limits.TTL), true); ok {
		t.Errorf("evicted while the index is incomplete: %v", v)
	}
	x.Complete()
	if got := drain(x, later, 0); len(got) > 0 {
		t.Errorf("before the TTL: %v", got)
	}
	pin(x, name(0), later)
	x.Unpin(name(0), later)
	got := drain(x, start.Add(time.Hour), 0)
	if len(got) != 1 || got[0].Digest != name(1) || got[0].Reason != Expired || len(got[0].Links) != 1 {
		t.Errorf("after an hour: %v", got)
	}
	if oldest := x.Oldest(); !oldest.Equal(later) {
		t.Errorf("oldest: %v", oldest)
	}
	if got := drain(x, later.Add(time.Hour), 0); len(got) != 1 {
		t.Errorf("an hour after the use: %v", got)
	}
	if oldest := x.Oldest(); !oldest.IsZero() {
		t.Errorf("oldest object of an empty index: %v", oldest)
	}
}

// Without a known time, objects do not expire, but they are evicted for space.
func (s suite) unknownTime(t *testing.T) {
	x := s.index()
	x.AddContent(name(0), 1, start)
	x.Link(name(0), layer)
	x.AddContent(name(1), 1, start)
	x.Complete()
	if got := drain(x, time.Time{}, 0); len(got) != 1 || got[0].Reason != Unreferenced {
		t.Errorf("without need of space: %v", got)
	}
	if got := drain(x, time.Time{}, 1); len(got) != 1 || got[0].Reason != s.space {
		t.Errorf("with need of space: %v", got)
	}
}

func (s suite) nothingWithoutTTL(t *testing.T) {
	x := NewIndex(s.new(0))
	x.AddContent(name(0), 1, start)
	x.AddContent(name(1), 1, start)
	x.Link(name(1), layer)
	x.Complete()
	if got := drain(x, start.Add(time.Hour), 1<<40); len(got) > 0 {
		t.Errorf("evicted: %v", got)
	}
}

func (s suite) unreferenced(t *testing.T) {
	x := s.index()
	x.AddContent(name(0), 7, start)
	x.Link(name(0), Link{Kind: Tag, Repository: "library/alpine", Tag: "v1"})
	x.Link(name(1), layer)
	x.AddContent(name(2), 7, start)
	x.Link(name(2), layer)
	x.Complete()
	got := drain(x, start, 0)
	// The object without content has no last use.
	if len(got) != 2 || got[1].Digest != name(0) || got[1].Size != 7 || got[0].Digest != name(1) || got[0].Size != 0 || got[0].Reason != Unreferenced {
		t.Errorf("evicted: %v", got)
	}
	// A download with stored content and a link that could not be written.
	pin(x, name(3), start)
	x.SetStored(name(3), 1)
	if got := drain(x, start, 0); len(got) > 0 {
		t.Errorf("evicted while it is written: %v", got)
	}
	x.Unpin(name(3), start)
	if got := drain(x, start, 0); len(got) != 1 || got[0].Digest != name(3) {
		t.Errorf("evicted after it was written: %v", got)
	}
}

func (s suite) uncertainLink(t *testing.T) {
	x := s.index()
	other := Link{Kind: Layer, Repository: "library/other"}
	x.Complete()
	pin(x, name(0), start)
	x.SetStored(name(0), 1)
	for _, l := range []Link{layer, other} {
		x.Link(name(0), l)
	}
	x.MarkLinkUncertain(name(0), layer)
	x.MarkLinkUncertain(name(0), layer)
	x.Unpin(name(0), start)
	if got := drain(x, start, 0); len(got) > 0 {
		t.Errorf("content with a certain link is evicted: %v", got)
	}
	pin(x, name(0), start)
	x.MarkLinkUncertain(name(0), other)
	x.Link(name(0), other)
	x.Unpin(name(0), start)
	if got := drain(x, start, 0); len(got) > 0 {
		t.Errorf("content with a link that was written again is evicted: %v", got)
	}
	pin(x, name(0), start)
	x.MarkLinkUncertain(name(0), other)
	if got := drain(x, start, 0); len(got) > 0 {
		t.Errorf("pinned content is evicted: %v", got)
	}
	x.Unpin(name(0), start)
	if got := drain(x, start, 0); len(got) != 1 || got[0].Reason != Unreferenced || len(got[0].Links) != 2 {
		t.Errorf("content with uncertain links only: %v", got)
	}
}

func (s suite) failedRemoval(t *testing.T) {
	x := s.index()
	x.AddContent(name(0), 1, start)
	x.Link(name(0), layer)
	x.Complete()
	end := start.Add(limits.TTL)
	if _, ok := x.Next(end, false); !ok {
		t.Fatal("nothing is evicted")
	}
	x.RemovalFailed(name(0))
	pin(x, name(0), start)
	x.Unpin(name(0), start)
	if v, ok := x.Next(end, true); ok {
		t.Errorf("evicted before Retry: %v", v)
	}
	x.Retry(name(0))
	if _, ok := x.Next(end, false); !ok {
		t.Error("not evicted after Retry")
	}
}

func (s suite) pinWaitsForRemoval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := s.index()
		x.AddContent(name(0), 1, start)
		x.Link(name(0), layer)
		x.Complete()
		if _, ok := x.Next(start, true); !ok {
			t.Fatal("nothing is evicted")
		}
		pinned := false
		go func() {
			pin(x, name(0), start)
			pinned = true
		}()
		synctest.Wait()
		if pinned || x.TryPin(name(0), start) {
			t.Error("pinned during the removal")
		}
		if x.Pin(name(0), start, time.Second) {
			t.Error("pinned after a second of the removal")
		}
		x.RemovalDone(name(0))
		synctest.Wait()
		if !pinned || !x.TryPin(name(0), start) || x.Stats().Pinned != 2 {
			t.Errorf("after the removal: pinned %t, %+v", pinned, x.Stats())
		}
		if len(x.Records()) > 0 {
			t.Error("the removed content is still recorded")
		}
	})
}

// pin pins an object whose removal ends.
func pin(x *Index, d digest.Digest, now time.Time) {
	if !x.Pin(d, now, time.Hour) {
		panic("the removal has not ended")
	}
}

// Take removes content that is being read, and content that the policy would keep.
func (s suite) take(t *testing.T) {
	x := s.index()
	pin(x, name(0), start)
	x.SetStored(name(0), 5)
	x.Link(name(0), layer)
	v, ok := x.Take(name(0), Corrupt)
	if want := (Victim{Digest: name(0), Size: 5, LastUse: start, Reason: Corrupt, Links: []Link{layer}}); !ok || !cmp.Equal(v, want) {
		t.Fatalf("got %+v, %t, want %+v", v, ok, want)
	}
	if _, ok := x.Take(name(0), Corrupt); ok {
		t.Error("taken twice")
	}
	x.RemovalDone(name(0))
	if _, stored := x.Size(name(0)); stored || x.Stats() != (Stats{Pinned: 1}) {
		t.Errorf("after the removal: stored %t, %+v", stored, x.Stats())
	}
	// The reader may store it again.
	x.SetStored(name(0), 6)
	x.Link(name(0), layer)
	x.Unpin(name(0), start)
	x.Complete()
	if size, stored := x.Size(name(0)); !stored || size != 6 {
		t.Errorf("stored again: %d, %t", size, stored)
	}
	if got := drain(x, start, 0); len(got) > 0 {
		t.Errorf("content that was stored again is evicted: %v", got)
	}
	if _, ok := x.Take(name(1), Corrupt); ok {
		t.Error("an unknown object was taken")
	}
}

func (s suite) useWithoutFile(t *testing.T) {
	x := s.index()
	later := start.Add(time.Minute)
	if x.Use(name(0), layer, later) {
		t.Error("unknown content was used")
	}
	x.Link(name(0), layer)
	if x.Use(name(0), layer, later) {
		t.Error("a link without content was used")
	}
	x.AddContent(name(0), 1, start)
	if x.Use(name(0), Link{Kind: Layer, Repository: "library/other"}, later) {
		t.Error("content was used for a repository without a link")
	}
	if !x.Use(name(0), layer, later) {
		t.Error("stored content was not used")
	}
	x.Complete()
	if got := drain(x, start.Add(limits.TTL), 0); len(got) > 0 {
		t.Errorf("the use has no effect: %v", got)
	}
	if _, ok := x.Next(later.Add(limits.TTL), false); !ok {
		t.Fatal("nothing is evicted")
	}
	if x.Use(name(0), layer, later.Add(limits.TTL)) {
		t.Error("content was used during its removal")
	}
}

// Shift keeps the order of last uses and sets none in the future.
func (s suite) shift(t *testing.T) {
	x := s.index()
	for n := range 3 {
		x.AddContent(name(n), 1, start.Add(time.Duration(n)*time.Minute))
		x.Link(name(n), layer)
	}
	x.Complete()
	year := start.AddDate(1, 0, 0)
	x.Shift(year.Sub(start)-time.Minute, year)
	if got := drain(x, year, 0); len(got) > 0 {
		t.Errorf("expired after the shift: %v", got)
	}
	records := map[digest.Digest]time.Duration{}
	for _, r := range x.Records() {
		records[r.Digest] = year.Sub(r.LastUse)
	}
	if want := map[digest.Digest]time.Duration{name(0): time.Minute, name(1): 0, name(2): 0}; !cmp.Equal(records, want) {
		t.Errorf("ages: %v, want %v", records, want)
	}
}

func (s suite) statsFollowTheContent(t *testing.T) {
	x := s.index()
	x.AddContent(name(0), 10, start)
	x.AddContent(name(1), 5000, start)
	x.AddContent(name(1), 7, start) // the known size stays
	if got, want := x.Stats(), (Stats{Objects: 2, Bytes: 5010, Removable: (1 + 2 + 2*linksBlocks) * blockSize}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	pin(x, name(1), start)
	x.SetStored(name(1), 7)
	if got, want := x.Stats(), (Stats{Objects: 2, Bytes: 17, Removable: (2 + 2*linksBlocks) * blockSize, Pinned: 1}); got != want {
		t.Errorf("after an overwrite: got %+v, want %+v", got, want)
	}
	x.Unpin(name(1), start)
	x.Complete()
	drain(x, start, 0)
	if got := x.Stats(); got != (Stats{}) {
		t.Errorf("after eviction: %+v", got)
	}
}

// randomOperations compares evictions after random operations with a model.
func (s suite) randomOperations(t *testing.T) {
	type object struct {
		lastUse time.Time
		size    int64
		pins    int
		linked  bool
	}
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		x, objects, order, now := s.index(), map[digest.Digest]*object{}, s.model(), start
		x.Complete()
		for step := range 400 {
			d := name(random.IntN(20))
			now = now.Add(time.Duration(random.IntN(int(limits.TTL / 50))))
			o := objects[d]
			switch random.IntN(5) {
			case 0: // store
				pin(x, d, now)
				if o == nil {
					o = &object{size: int64(random.IntN(100))}
					objects[d] = o
					x.SetStored(d, o.size)
					order.insert(d, now)
				} else {
					order.use(d, now)
				}
				if random.IntN(10) > 0 {
					x.Link(d, layer)
					o.linked = true
				}
				o.lastUse = now
				x.Unpin(d, now)
			case 1: // start of a read
				if o != nil {
					pin(x, d, now)
					o.pins, o.lastUse = o.pins+1, now
					order.use(d, now)
				}
			case 2: // end of a read
				if o != nil && o.pins > 0 {
					x.Unpin(d, now)
					o.pins, o.lastUse = o.pins-1, now
					order.unpin(d, now)
				}
			case 3: // request of missing content
				if o == nil {
					pin(x, d, now)
					x.Unpin(d, now)
				}
			case 4: // eviction
				need := int64(random.IntN(200)) - 100
				var freed int64
				for {
					oldest, unreferenced := now.Add(1), false
					for _, o := range objects {
						if o.pins == 0 && o.linked && o.lastUse.Before(oldest) {
							oldest = o.lastUse
						}
						unreferenced = unreferenced || o.pins == 0 && !o.linked
					}
					expired := now.Sub(oldest) >= limits.TTL
					selectable := func(d digest.Digest) bool { o := objects[d]; return o.pins == 0 && o.linked }
					v, ok := x.Next(now, freed < need)
					if !ok {
						if unreferenced || expired || freed < need && !oldest.After(now) {
							t.Fatalf("seed %d, step %d: nothing is evicted: %v", seed, step, objects)
						}
						break
					}
					evicted := objects[v.Digest]
					if evicted == nil || evicted.pins > 0 || v.Size != evicted.size || s.space == LeastRecentlyUsed && !v.LastUse.Equal(evicted.lastUse) {
						t.Fatalf("seed %d, step %d: %v is evicted, which is %v", seed, step, v, evicted)
					}
					right := false
					switch v.Reason {
					case Unreferenced:
						right = !evicted.linked
					case Expired:
						right = evicted.linked && !unreferenced && evicted.lastUse.Equal(oldest) && expired
					case s.space:
						right = !unreferenced && !expired && freed < need && v.Digest == order.next(selectable)
					}
					if !right {
						t.Fatalf("seed %d, step %d: %v is evicted, oldest %v, unreferenced %t", seed, step, v, oldest, unreferenced)
					}
					freed += v.Size
					if random.IntN(4) == 0 && v.Reason != s.space {
						x.RemovalFailed(v.Digest)
						x.Retry(v.Digest)
						break
					}
					x.RemovalDone(v.Digest)
					order.remove(v.Digest)
					delete(objects, v.Digest)
				}
			}
			if got := len(x.Records()); got != len(objects) {
				t.Fatalf("seed %d, step %d: %d objects, want %d", seed, step, got, len(objects))
			}
		}
	}
}

// randomIndex returns a complete index with up to 50 objects, of which one is pinned, and the size of its content.
func (s suite) randomIndex(seed uint64, now time.Time) (x *Index, size int64) {
	random := rand.New(rand.NewPCG(seed, 2))
	x = s.index()
	for i := range 50 {
		if random.IntN(10) > 0 {
			x.AddContent(name(i), int64(random.IntN(100)), now.Add(-time.Duration(random.Int64N(int64(limits.TTL+limits.TTL/10)))))
		}
		if random.IntN(10) > 0 {
			x.Link(name(i), layer)
		}
		if random.IntN(3) == 0 {
			x.Use(name(i), layer, now.Add(-time.Minute))
		}
	}
	x.Complete()
	pin(x, name(random.IntN(50)), now)
	return x, x.Stats().Bytes
}

func (s suite) forecastIsWhatNextDoes(t *testing.T) {
	for seed := range uint64(200) {
		now := start.Add(2 * limits.TTL)
		x, size := s.randomIndex(seed, now)
		usage := Usage{FileSystem: Amount{Used: size, Limit: size*100/90 + int64(seed*5) - 500}, Own: size}
		var want []Victim
		for _, c := range x.Forecast(now, limits, usage) {
			if c.Now {
				want = append(want, c.Victim)
			}
		}
		got := drain(x, now, limits.Need(usage, false).Bytes)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("seed %d: -forecast +evicted\n%s", seed, diff)
		}
		usage.FileSystem.Used = x.Stats().Bytes
		for _, c := range x.Forecast(now, limits, usage) {
			if c.Now {
				t.Fatalf("seed %d: after the eviction, the forecast contains %+v", seed, c)
			}
		}
	}
}

// order returns the digests in the order of the policy.
func order(x *Index, now time.Time) (digests []digest.Digest) {
	for _, c := range x.Forecast(now, limits, Usage{}) {
		if c.Rank > 0 {
			digests = append(digests, c.Digest)
		}
	}
	return digests
}

func (s suite) evictionKeepsTheOrder(t *testing.T) {
	for seed := range uint64(50) {
		now := start.Add(2 * limits.TTL)
		x, _ := s.randomIndex(seed, now)
		for want := order(x, now); len(want) > 0; want = want[1:] {
			if got := order(x, now); !slices.Equal(got, want) {
				t.Fatalf("seed %d: -want +got\n%s", seed, cmp.Diff(want, got))
			}
			v, ok := x.Next(now, true)
			if !ok || v.Digest != want[0] {
				t.Fatalf("seed %d: %v is evicted, want %s", seed, v, want[0])
			}
			x.RemovalDone(v.Digest)
		}
		if v, ok := x.Next(now, true); ok {
			t.Fatalf("seed %d: %v is evicted, which had no rank", seed, v)
		}
	}
}

func (s suite) orderChangesNothing(t *testing.T) {
	for seed := range uint64(50) {
		now := start.Add(2 * limits.TTL)
		x, _ := s.randomIndex(seed, now)
		first := order(x, now)
		if again := order(x, now); !slices.Equal(first, again) {
			t.Fatalf("seed %d: -first +again\n%s", seed, cmp.Diff(first, again))
		}
	}
}

// lruModel sorts by last use.
type lruModel struct{ uses map[digest.Digest]time.Time }

func (m *lruModel) insert(d digest.Digest, at time.Time) { m.use(d, at) }

func (m *lruModel) use(d digest.Digest, at time.Time) {
	if m.uses == nil {
		m.uses = map[digest.Digest]time.Time{}
	}
	m.uses[d] = at
}

func (m *lruModel) unpin(d digest.Digest, at time.Time) { m.use(d, at) }

func (m *lruModel) remove(d digest.Digest) { delete(m.uses, d) }

func (m *lruModel) next(selectable func(digest.Digest) bool) (next digest.Digest) {
	for d, at := range m.uses {
		if selectable(d) && (next == "" || at.Before(m.uses[next]) || at.Equal(m.uses[next]) && d < next) {
			next = d
		}
	}
	return next
}

// sieveModel is algorithm 1 of the paper on a slice, oldest object first.
type sieveModel struct {
	queue []digest.Digest
	used  map[digest.Digest]bool
	hand  int
}

func (m *sieveModel) insert(d digest.Digest, _ time.Time) {
	m.queue = append(m.queue, d)
	if m.used == nil {
		m.used = map[digest.Digest]bool{}
	}
	m.used[d] = false
}

func (m *sieveModel) use(d digest.Digest, _ time.Time) { m.used[d] = true }

func (m *sieveModel) unpin(digest.Digest, time.Time) {}

func (m *sieveModel) remove(d digest.Digest) {
	i := slices.Index(m.queue, d)
	m.queue = slices.Delete(m.queue, i, i+1)
	if m.hand > i {
		m.hand--
	}
	if m.hand >= len(m.queue) {
		m.hand = 0
	}
	delete(m.used, d)
}

func (m *sieveModel) next(selectable func(digest.Digest) bool) digest.Digest {
	for range 2 * len(m.queue) {
		d := m.queue[m.hand]
		m.hand = (m.hand + 1) % len(m.queue)
		if !selectable(d) {
			continue
		}
		if !m.used[d] {
			return d
		}
		m.used[d] = false
	}
	return ""
}
