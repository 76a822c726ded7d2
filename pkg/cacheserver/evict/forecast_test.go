// SPDX-License-Identifier: Apache-2.0

package evict

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

// fill makes an index of objects that were used one minute after the other, the first one an hour before end. Each has
// 100 bytes.
func fill(n int, end time.Time) *Index {
	x := NewIndex()
	for i := range n {
		x.Found(name(i), 100, end.Add(-time.Hour+time.Duration(i)*time.Minute))
		x.Link(name(i), layer)
	}
	x.Complete()
	return x
}

func TestForecast(t *testing.T) {
	t.Parallel()
	now := start.Add(time.Hour)
	tag := Link{Kind: Tag, Repository: "library/alpine", Tag: "v1"}
	for _, test := range []struct {
		name   string
		policy Policy
		volume Volume
		// want is "<reason> <now>" of the objects 0 to 3, whose ranks are 2 to 5 behind the unreferenced one.
		want [4]string
	}{
		{"far from full", policy, Volume{Used: 500, Limit: 2000}, [4]string{"expired now", "least-recently-used", "least-recently-used", ""}},
		{"full", policy, Volume{Used: 1000, Limit: 1000}, [4]string{"expired now", "", "", ""}},
		{"overfull", policy, Volume{Used: 1200, Limit: 1000}, [4]string{"expired now", "least-recently-used now", "least-recently-used now", ""}},
		{"between the watermarks", Policy{TTL: time.Hour, HighWatermark: 90, LowWatermark: 70}, Volume{Used: 800, Limit: 1000},
			[4]string{"expired now", "least-recently-used", "least-recently-used", ""}},
		{"not measured", policy, Volume{}, [4]string{"expired now", "", "", ""}},
		{"longer TTL", Policy{TTL: 2 * time.Hour, HighWatermark: 90, LowWatermark: 80}, Volume{}, [4]string{}},
	} {
		x := fill(4, now)
		x.Found(name(9), 100, now)
		x.Link(name(9), tag)
		got := x.Forecast(now, test.policy, test.volume)
		if len(got) != 5 || got[0].Digest != name(9) || got[0].Reason != Unreferenced || !got[0].Now || !got[0].Stored || len(got[0].Links) != 1 {
			t.Errorf("%s: %+v", test.name, got)
			continue
		}
		for i, f := range got[1:] {
			reason := string(f.Reason)
			if f.Now {
				reason += " now"
			}
			if f.Digest != name(i) || f.Rank != i+2 || reason != test.want[i] || !f.Expires.Equal(f.LastUse.Add(test.policy.TTL)) {
				t.Errorf("%s: object %d is %+v, want reason %q", test.name, i, f, test.want[i])
			}
		}
	}
}

func TestForecastOfWhatStays(t *testing.T) {
	t.Parallel()
	now, full := start.Add(time.Hour), Volume{Used: 1000, Limit: 1000}
	x := fill(2, now)
	x.Link(name(2), layer)
	for _, f := range x.Forecast(now, Policy{HighWatermark: 90, LowWatermark: 80}, full) {
		if f.Reason != "" || f.Now || f.Rank != 0 || !f.Expires.IsZero() || f.Stored != (f.Digest != name(2)) {
			t.Errorf("without a TTL: %+v", f)
		}
	}
	if got := x.Forecast(now, policy, full)[0]; got.Digest != name(2) || got.Stored || got.Reason != Unreferenced || !got.Expires.IsZero() {
		t.Errorf("links without content: %+v", got)
	}
	x.Hold(name(0), now)
	got := x.Forecast(now, policy, full)
	if len(got) != 3 || got[2].Digest != name(0) || got[2].Reason != "" || got[2].Rank != 0 {
		t.Errorf("held: %+v", got)
	}
	x = NewIndex()
	x.Found(name(0), 1, start)
	if got := x.Forecast(now, policy, full); len(got) != 1 || got[0].Reason != "" {
		t.Errorf("incomplete: %+v", got)
	}
}

// TestForecastIsWhatNextDoes compares the forecast with what goes then.
func TestForecastIsWhatNextDoes(t *testing.T) {
	t.Parallel()
	type removal struct {
		Reason Reason
		Size   int64
	}
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 2))
		x, now := NewIndex(), start.Add(2*policy.TTL)
		var used int64
		for i := range 50 {
			if random.IntN(10) > 0 {
				size := int64(random.IntN(100))
				used += size
				x.Found(name(i), size, now.Add(-time.Duration(random.Int64N(int64(policy.TTL+policy.TTL/10)))))
			}
			if random.IntN(10) > 0 {
				x.Link(name(i), layer)
			}
		}
		x.Complete()
		held := name(random.IntN(50))
		x.Hold(held, now)
		volume := Volume{Used: used, Limit: used*100/90 + int64(random.IntN(1000)) - 500}
		want := map[digest.Digest]removal{}
		for _, f := range x.Forecast(now, policy, volume) {
			if f.Now {
				want[f.Digest] = removal{f.Reason, f.Size}
			}
		}
		got := map[digest.Digest]removal{}
		for _, v := range drain(x, now, policy, policy.Excess(volume, false)) {
			got[v.Digest] = removal{v.Reason, v.Size}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("seed %d: -forecast +removed\n%s", seed, diff)
		}
		for _, f := range x.Forecast(now, policy, Volume{Used: used - sum(got, func(r removal) int64 { return r.Size }), Limit: volume.Limit}) {
			if f.Now {
				t.Fatalf("seed %d: %+v goes still", seed, f)
			}
		}
	}
}

func sum[K comparable, V any](m map[K]V, value func(V) int64) (total int64) {
	for _, v := range m {
		total += value(v)
	}
	return total
}
