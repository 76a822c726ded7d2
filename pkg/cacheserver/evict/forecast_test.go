// SPDX-License-Identifier: Apache-2.0

package evict

import (
	"testing"
	"time"
)

// fill returns an index with n objects of 100 bytes. Their last uses are one minute apart; the first one is an hour before
// end.
func fill(ttl time.Duration, n int, end time.Time) *Index {
	x := NewIndex(NewLRU(ttl))
	for i := range n {
		x.AddContent(name(i), 100, end.Add(-time.Hour+time.Duration(i)*time.Minute))
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
		limits Limits
		used   Amount
		// want is "<reason> <now>" of the objects 0 to 3, which have the ranks 2 to 5 after the unreferenced one.
		want [4]string
	}{
		{"below the watermark", limits, Amount{500, 2000}, [4]string{"expired now", "least-recently-used", "least-recently-used", ""}},
		{"full", limits, Amount{1000, 1000}, [4]string{"expired now", "", "", ""}},
		{"more than full", limits, Amount{1200, 1000}, [4]string{"expired now", "least-recently-used now", "least-recently-used now", ""}},
		{"between the watermarks", Limits{TTL: time.Hour, HighWatermark: 90, LowWatermark: 70}, Amount{800, 1000},
			[4]string{"expired now", "least-recently-used", "least-recently-used", ""}},
		{"not measured", limits, Amount{}, [4]string{"expired now", "", "", ""}},
		{"longer TTL", Limits{TTL: 2 * time.Hour, HighWatermark: 90, LowWatermark: 80}, Amount{}, [4]string{}},
		{"size reached", withSize(500), Amount{1000, 1 << 60}, [4]string{"expired now", "", "", ""}},
		{"size exceeded", withSize(350), Amount{1000, 1 << 60}, [4]string{"expired now", "least-recently-used now", "", ""}},
		{"below the size", withSize(1500), Amount{1000, 1 << 60}, [4]string{"expired now", "least-recently-used", "least-recently-used", ""}},
	} {
		x := fill(test.limits.TTL, 4, now)
		x.AddContent(name(9), 100, now)
		x.Link(name(9), tag)
		got := x.Forecast(now, test.limits, Usage{FileSystem: test.used})
		if len(got) != 5 || got[0].Digest != name(9) || got[0].Reason != Unreferenced || !got[0].Now || !got[0].Stored || len(got[0].Links) != 1 {
			t.Errorf("%s: %+v", test.name, got)
			continue
		}
		for i, c := range got[1:] {
			reason := string(c.Reason)
			if c.Now {
				reason += " now"
			}
			if c.Digest != name(i) || c.Rank != i+2 || reason != test.want[i] || !c.Expires.Equal(c.LastUse.Add(test.limits.TTL)) {
				t.Errorf("%s: object %d is %+v, want reason %q", test.name, i, c, test.want[i])
			}
		}
	}
}

func TestForecastOfObjectsThatStay(t *testing.T) {
	t.Parallel()
	now, full := start.Add(time.Hour), Usage{FileSystem: Amount{1000, 1000}}
	x := fill(0, 2, now)
	x.Link(name(2), layer)
	for _, c := range x.Forecast(now, Limits{HighWatermark: 90, LowWatermark: 80}, full) {
		if c.Reason != "" || c.Now || c.Rank != 0 || !c.Expires.IsZero() || c.Stored != (c.Digest != name(2)) {
			t.Errorf("without a TTL: %+v", c)
		}
	}
	x = fill(limits.TTL, 2, now)
	x.Link(name(2), layer)
	if got := x.Forecast(now, limits, full)[0]; got.Digest != name(2) || got.Stored || got.Reason != Unreferenced || !got.Expires.IsZero() {
		t.Errorf("links without content: %+v", got)
	}
	pin(x, name(0), now)
	got := x.Forecast(now, limits, full)
	if len(got) != 3 || got[2].Digest != name(0) || got[2].Reason != "" || got[2].Rank != 0 {
		t.Errorf("pinned: %+v", got)
	}
	x = NewIndex(NewLRU(limits.TTL))
	x.AddContent(name(0), 1, start)
	if got := x.Forecast(now, limits, full); len(got) != 1 || got[0].Reason != "" {
		t.Errorf("incomplete: %+v", got)
	}
}
