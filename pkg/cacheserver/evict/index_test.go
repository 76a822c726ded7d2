// SPDX-License-Identifier: Apache-2.0

package evict

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

var (
	start  = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	policy = Policy{TTL: time.Hour, HighWatermark: 90, LowWatermark: 80}
	layer  = Link{Kind: Layer, Repository: "library/alpine"}
)

func name(n int) digest.Digest { return digest.FromString(fmt.Sprint(n)) }

func TestExcess(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		used, limit int64
		full        bool
		want        int64
	}{
		{0, 0, false, 0},
		{0, 1000, true, 0},
		{899, 1000, false, 0},
		{900, 1000, false, 100},
		{1000, 1000, false, 200},
		{810, 1000, true, 10},
		{800, 1000, true, 0},
		{1 << 62, 1 << 62, false, 1<<62 - (1<<62/100*80 + 1<<62%100*80/100)},
	} {
		if got := policy.Excess(Volume{test.used, test.limit}, test.full); got != test.want {
			t.Errorf("%d of %d, full %t: %d, want %d", test.used, test.limit, test.full, got, test.want)
		}
	}
	never := Policy{HighWatermark: 90, LowWatermark: 80}
	if got := never.Excess(Volume{1000, 1000}, true); got != 0 {
		t.Errorf("without a TTL: %d", got)
	}
}

func TestFits(t *testing.T) {
	t.Parallel()
	for size, want := range map[int64]bool{0: true, 800: true, 801: false} {
		if got := policy.Fits(Volume{Used: 1000, Limit: 1000}, size); got != want {
			t.Errorf("%d of 1000 bytes: %t", size, got)
		}
	}
	if (Policy{LowWatermark: 80}).Fits(Volume{Limit: 1000}, 1) {
		t.Error("room is made where nothing may go")
	}
}

// drain takes all that goes now.
func drain(x *Index, now time.Time, p Policy, needed int64) (victims []Victim) {
	var freed int64
	for {
		v, ok := x.Next(now, p, freed < needed)
		if !ok {
			return victims
		}
		freed += v.Size
		x.Removed(v.Digest)
		victims = append(victims, v)
	}
}

func TestSlidingTTL(t *testing.T) {
	t.Parallel()
	x := NewIndex()
	for n := range 2 {
		x.Found(name(n), 1, start)
		x.Link(name(n), layer)
	}
	later := start.Add(time.Hour - 1)
	if v, ok := x.Next(start.Add(policy.TTL), policy, true); ok {
		t.Errorf("%v goes while there may be more that is unknown", v)
	}
	x.Complete()
	if got := drain(x, later, policy, 0); len(got) > 0 {
		t.Errorf("before its time: %v", got)
	}
	x.Hold(name(0), later)
	x.Release(name(0), later)
	got := drain(x, start.Add(time.Hour), policy, 0)
	if len(got) != 1 || got[0].Digest != name(1) || got[0].Reason != Expired || len(got[0].Links) != 1 {
		t.Errorf("after an hour: %v", got)
	}
	if got := drain(x, later.Add(time.Hour), Policy{}, 1<<40); len(got) > 0 {
		t.Errorf("without a TTL: %v", got)
	}
	if oldest, ok := x.Oldest(); !ok || !oldest.Equal(later) {
		t.Errorf("oldest: %v, %t", oldest, ok)
	}
	if got := drain(x, later.Add(time.Hour), policy, 0); len(got) != 1 {
		t.Errorf("an hour after its use: %v", got)
	}
	if _, ok := x.Oldest(); ok {
		t.Error("an empty index has an oldest object")
	}
}

func TestUnreferenced(t *testing.T) {
	t.Parallel()
	x := NewIndex()
	x.Found(name(0), 7, start)
	x.Link(name(0), Link{Kind: Tag, Repository: "library/alpine", Tag: "v1"})
	x.Link(name(1), layer)
	x.Found(name(2), 7, start)
	x.Link(name(2), layer)
	x.Complete()
	got := drain(x, start, policy, 0)
	slices.SortFunc(got, func(a, b Victim) int { return cmp.Compare(b.Size, a.Size) })
	if len(got) != 2 || got[0].Digest != name(0) || got[0].Size != 7 || got[1].Digest != name(1) || got[1].Size != 0 || got[1].Reason != Unreferenced {
		t.Errorf("first: %v", got)
	}
	// A fetch whose content was stored but not linked.
	x.Hold(name(3), start)
	x.Stored(name(3), 1)
	if got := drain(x, start, policy, 0); len(got) > 0 {
		t.Errorf("while it is filled: %v", got)
	}
	x.Release(name(3), start)
	if got := drain(x, start, policy, 0); len(got) != 1 || got[0].Digest != name(3) {
		t.Errorf("after it was filled: %v", got)
	}
}

func TestDoubt(t *testing.T) {
	t.Parallel()
	x := NewIndex()
	other := Link{Kind: Layer, Repository: "library/other"}
	x.Complete()
	x.Hold(name(0), start)
	x.Stored(name(0), 1)
	for _, l := range []Link{layer, other} {
		x.Link(name(0), l)
	}
	x.Doubt(name(0), layer)
	x.Doubt(name(0), layer)
	x.Release(name(0), start)
	if got := drain(x, start, policy, 0); len(got) > 0 {
		t.Errorf("what another repository has goes: %v", got)
	}
	x.Hold(name(0), start)
	x.Doubt(name(0), other)
	x.Link(name(0), other)
	x.Release(name(0), start)
	if got := drain(x, start, policy, 0); len(got) > 0 {
		t.Errorf("what was linked after all goes: %v", got)
	}
	x.Hold(name(0), start)
	x.Doubt(name(0), other)
	if got := drain(x, start, policy, 0); len(got) > 0 {
		t.Errorf("while it is held: %v", got)
	}
	x.Release(name(0), start)
	if got := drain(x, start, policy, 0); len(got) != 1 || got[0].Reason != Unreferenced || len(got[0].Links) != 2 {
		t.Errorf("what nobody has for sure: %v", got)
	}
}

func TestKept(t *testing.T) {
	t.Parallel()
	x := NewIndex()
	x.Found(name(0), 1, start)
	x.Link(name(0), layer)
	x.Complete()
	end := start.Add(policy.TTL)
	if _, ok := x.Next(end, policy, false); !ok {
		t.Fatal("nothing goes")
	}
	x.Kept(name(0))
	if v, ok := x.Next(end, policy, true); ok {
		t.Errorf("goes again at once: %v", v)
	}
	x.Retry(name(0))
	if _, ok := x.Next(end, policy, false); !ok {
		t.Error("does not go again")
	}
}

func TestHoldWaitsForRemoval(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		x := NewIndex()
		x.Found(name(0), 1, start)
		x.Link(name(0), layer)
		x.Complete()
		if _, ok := x.Next(start, policy, true); !ok {
			t.Fatal("nothing goes")
		}
		held := false
		go func() {
			x.Hold(name(0), start)
			held = true
		}()
		synctest.Wait()
		if held {
			t.Error("held while it is removed")
		}
		x.Removed(name(0))
		synctest.Wait()
		if !held {
			t.Error("not held after it was removed")
		}
		if len(x.Uses()) > 0 {
			t.Error("what was removed is still there")
		}
	})
}

// TestAnyOrder does random things and checks what goes against a plain model.
func TestAnyOrder(t *testing.T) {
	t.Parallel()
	type known struct {
		lastUse time.Time
		size    int64
		holders int
		linked  bool
	}
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		x, model, now := NewIndex(), map[digest.Digest]*known{}, start
		x.Complete()
		for step := range 400 {
			d := name(random.IntN(20))
			now = now.Add(time.Duration(random.IntN(int(policy.TTL / 50))))
			k := model[d]
			switch random.IntN(5) {
			case 0: // fill
				x.Hold(d, now)
				if k == nil {
					k = &known{size: int64(random.IntN(100))}
					model[d] = k
					x.Stored(d, k.size)
				}
				if random.IntN(10) > 0 {
					x.Link(d, layer)
					k.linked = true
				}
				k.lastUse = now
				x.Release(d, now)
			case 1: // begin to read
				if k != nil {
					x.Hold(d, now)
					k.holders, k.lastUse = k.holders+1, now
				}
			case 2: // end to read
				if k != nil && k.holders > 0 {
					x.Release(d, now)
					k.holders, k.lastUse = k.holders-1, now
				}
			case 3: // look for what is not there
				if k == nil {
					x.Hold(d, now)
					x.Release(d, now)
				}
			case 4:
				needed := int64(random.IntN(200)) - 100
				var freed int64
				for {
					v, ok := x.Next(now, policy, freed < needed)
					oldest := now.Add(1)
					garbage := false
					for _, other := range model {
						if other.holders == 0 && other.linked && other.lastUse.Before(oldest) {
							oldest = other.lastUse
						}
						garbage = garbage || other.holders == 0 && !other.linked
					}
					if !ok {
						if garbage || now.Sub(oldest) >= policy.TTL || freed < needed && !oldest.After(now) {
							t.Fatalf("seed %d, step %d: nothing goes, but something must: %v", seed, step, model)
						}
						break
					}
					gone := model[v.Digest]
					if gone == nil || gone.holders > 0 || v.Size != gone.size || !v.LastUse.Equal(gone.lastUse) {
						t.Fatalf("seed %d, step %d: %v goes, which is %v", seed, step, v, gone)
					}
					right := false
					switch v.Reason {
					case Unreferenced:
						right = !gone.linked
					case Expired:
						right = gone.linked && !garbage && gone.lastUse.Equal(oldest) && now.Sub(oldest) >= policy.TTL
					case LeastRecentlyUsed:
						right = gone.linked && !garbage && gone.lastUse.Equal(oldest) && now.Sub(oldest) < policy.TTL && freed < needed
					}
					if !right {
						t.Fatalf("seed %d, step %d: %v goes, oldest %v, garbage %t", seed, step, v, oldest, garbage)
					}
					freed += v.Size
					if random.IntN(4) == 0 {
						// It could not be removed.
						x.Kept(v.Digest)
						x.Retry(v.Digest)
						freed = needed
						break
					}
					x.Removed(v.Digest)
					delete(model, v.Digest)
				}
			}
			if got := len(x.Uses()); got != len(model) {
				t.Fatalf("seed %d, step %d: %d objects, want %d", seed, step, got, len(model))
			}
		}
	}
}

func BenchmarkUse(b *testing.B) {
	x := NewIndex()
	names := make([]digest.Digest, 100_000)
	for n := range names {
		names[n] = name(n)
		x.Found(names[n], 1, start)
		x.Link(names[n], layer)
	}
	x.Complete()
	b.ReportAllocs()
	now, n := start, 0
	for b.Loop() {
		now = now.Add(1)
		x.Hold(names[n], now)
		x.Release(names[n], now)
		n = (n + 7919) % len(names)
	}
}

func TestUseWithoutFile(t *testing.T) {
	t.Parallel()
	x := NewIndex()
	later := start.Add(time.Minute)
	if x.Use(name(0), layer, later) {
		t.Error("unknown content was used")
	}
	x.Link(name(0), layer)
	if x.Use(name(0), layer, later) {
		t.Error("a link without content was used")
	}
	x.Found(name(0), 1, start)
	if x.Use(name(0), Link{Kind: Layer, Repository: "library/other"}, later) {
		t.Error("it was used for a repository that does not have it")
	}
	if !x.Use(name(0), layer, later) {
		t.Error("what is there was not used")
	}
	x.Complete()
	if got := drain(x, start.Add(policy.TTL), policy, 0); len(got) > 0 {
		t.Errorf("a use does not count: %v", got)
	}
	if _, ok := x.Next(later.Add(policy.TTL), policy, false); !ok {
		t.Fatal("nothing goes")
	}
	if x.Use(name(0), layer, later.Add(policy.TTL)) {
		t.Error("what is being removed was used")
	}
}
