// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestTimeline(t *testing.T) {
	t.Parallel()
	const year = 365 * 24 * time.Hour
	built := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	now := built.Add(30 * 24 * time.Hour)
	epoch := time.Unix(0, 0)
	// step is one check: the system clock, and the elapsed time since the previous check.
	type step struct {
		wall    time.Time
		elapsed time.Duration
		shift   time.Duration // expected
		trusted bool          // expected after the step
		want    time.Time     // expected time after the step
	}
	const check = 10 * time.Second
	for name, test := range map[string]struct {
		wall, recorded time.Time
		trusted        bool
		steps          []step
	}{
		"correct clock": {now, now.Add(-time.Hour), true, []step{
			{now.Add(check), check, 0, true, now.Add(check)},
			{now.Add(2*check + time.Second), check, 0, true, now.Add(2*check + time.Second)}, // adjusted gradually
		}},
		"first start": {now, time.Time{}, true, []step{{now.Add(check), check, 0, true, now.Add(check)}}},
		"start in 1970": {epoch, now, false, []step{
			{epoch.Add(check), check, 0, false, now.Add(check)},
			{now.Add(time.Hour), check, time.Hour - 2*check, true, now.Add(time.Hour)},
		}},
		"start in 1970 without a record": {epoch, time.Time{}, false, []step{
			{epoch.Add(check), check, 0, false, epoch.Add(check)},
			{now, check, now.Sub(epoch) - 2*check, true, now},
		}},
		"start before the newest use": {now.Add(-48 * time.Hour), now, false, []step{
			{now.Add(-48*time.Hour + check), check, 0, false, now.Add(check)},
			{now.Add(time.Hour), check, time.Hour - 2*check, true, now.Add(time.Hour)},
		}},
		"record from the future": {now, now.Add(5 * year), false, []step{
			{now.Add(check), check, 0, false, now.Add(5*year + check)},
			{now.Add(settlingTime), settlingTime - check, -5 * year, true, now.Add(settlingTime)},
		}},
		"another node's clock is ahead": {now, now.Add(time.Minute), true, []step{{now.Add(check), check, 0, true, now.Add(check)}}},
		"jump by years forward and back": {now, now, true, []step{
			{now.Add(5*year + check), check, 5 * year, true, now.Add(5*year + check)},
			{now.Add(2 * check), check, -5 * year, true, now.Add(2 * check)},
		}},
		"jump to 1970": {now, now, true, []step{
			{epoch, check, 0, true, now.Add(check)},
			{now.Add(2 * check), check, 0, true, now.Add(2 * check)},
		}},
		"suspended for a weekend": {now, now, true, []step{{now.Add(60 * time.Hour), check, 60*time.Hour - check, true, now.Add(60 * time.Hour)}}},
		"down for three days":     {now.Add(72 * time.Hour), now, true, []step{{now.Add(72*time.Hour + check), check, 0, true, now.Add(72*time.Hour + check)}}},
		"start years ahead":       {now.Add(5 * year), now, true, []step{{now.Add(5*year + check), check, 5 * year, true, now.Add(5*year + check)}}},
	} {
		line := startTimeline(test.wall, test.recorded, built)
		if line.trusted != test.trusted {
			t.Errorf("%s: trusted %t after the start", name, line.trusted)
		}
		for i, s := range test.steps {
			var shift time.Duration
			line, shift = line.advance(s.wall, s.elapsed)
			if shift != s.shift || line.trusted != s.trusted || !line.now.Equal(s.want) {
				t.Errorf("%s, step %d: got shift %v, trusted %t, %v, want %v, %t, %v", name, i+1, shift, line.trusted, line.now, s.shift, s.trusted, s.want)
			}
		}
	}
}

// Content that is used every day is not evicted when the system clock is wrong, and expires when it is no longer used.
func TestWrongClock(t *testing.T) {
	t.Parallel()
	for name, offsets := range map[string][]time.Duration{
		"start in 1970":      {-30 * 365 * 24 * time.Hour, -30 * 365 * 24 * time.Hour, 0, 0},
		"years forward":      {0, 5 * 365 * 24 * time.Hour, 5 * 365 * 24 * time.Hour, 5 * 365 * 24 * time.Hour},
		"forward and back":   {0, 5 * 365 * 24 * time.Hour, 0, 0},
		"back to 1970":       {0, -30 * 365 * 24 * time.Hour, 0, 0},
		"always years ahead": {5 * 365 * 24 * time.Hour, 5 * 365 * 24 * time.Hour, 5 * 365 * 24 * time.Hour, 5 * 365 * 24 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				root := t.TempDir()
				first := open(t, root, setup{limits: week})
				stop := run(t, first)
				used, unused := sized(t, first, 1, 10), sized(t, first, 2, 10)
				stop()
				built := time.Now().Add(-time.Hour)
				var offset atomic.Int64
				offset.Store(int64(offsets[0]))
				s := open(t, root, setup{limits: week, wall: func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }, built: built})
				stop = run(t, s)
				for _, o := range offsets {
					offset.Store(int64(o))
					for range 4 {
						time.Sleep(day)
						use(t, s, used)
					}
					synctest.Wait()
					if !has(t, s, used) {
						t.Fatalf("content in use is evicted with the clock off by %v", o)
					}
				}
				time.Sleep(8 * day)
				synctest.Wait()
				if has(t, s, unused) || has(t, s, used) {
					t.Errorf("not evicted after 8 days without use: %t, %t", has(t, s, unused), has(t, s, used))
				}
				stop()
			})
		})
	}
}
