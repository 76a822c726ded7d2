// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"sync"
	"time"
)

const (
	// maxStep is the largest difference between the clock and the elapsed time between two checks that is a correction of
	// the clock's rate. A larger difference is a step of the clock, or a suspended machine.
	maxStep = time.Minute
	// maxDowntime is the longest time without a running cache that counts as time without use. A longer one is more
	// likely a wrong clock, and an empty cache after it would help no client.
	maxDowntime = 30 * 24 * time.Hour
	// recordTolerance is how much later than the clock a recorded use may be: the clock of another node can be ahead.
	recordTolerance = time.Hour
	// settlingTime is how long a clock that is earlier than recorded uses may take to be set, by NTP for example. After
	// that, the recorded times are considered wrong.
	settlingTime = time.Hour
)

// timeline derives the time of uses from the system clock and the elapsed (monotonic) time. Last uses must not become old
// because a clock is set. The zero value is not valid. All methods are pure functions.
type timeline struct {
	// now is the time at the last check.
	now time.Time
	// earliest is the earliest valid time of the system clock.
	earliest time.Time
	// trusted is true if now is based on the system clock. Otherwise the current time is unknown: now advances with the
	// elapsed time and has an arbitrary start.
	trusted bool
	// settling is the remaining time until a system clock that is earlier than recorded uses is trusted.
	settling time.Duration
	// recorded is the newest recorded use.
	recorded time.Time
}

// startTimeline returns the timeline of a process that starts when the system clock is wall. Recorded is the newest
// recorded use, zero if there is none; built is the time at which the program was built.
func startTimeline(wall, recorded, built time.Time) timeline {
	t := timeline{now: wall, earliest: built, recorded: recorded}
	switch {
	case wall.Before(built):
		// A machine without a battery starts in 1970. A recorded use is the best estimate.
		if recorded.After(wall) {
			t.now = recorded
		}
	case wall.Before(recorded.Add(-recordTolerance)):
		t.now, t.settling = recorded, settlingTime
	case !recorded.IsZero() && wall.Sub(recorded) > maxDowntime:
		// advance moves the recorded uses, as after a step of the clock.
		t.now, t.trusted = recorded, true
	default:
		t.trusted = true
	}
	return t
}

// advance returns the timeline after the elapsed time, when the system clock is wall. If the clock was set, all last uses
// must be moved by shift, so that the time since each of them is the same as before.
func (t timeline) advance(wall time.Time, elapsed time.Duration) (next timeline, shift time.Duration) {
	t.now = t.now.Add(elapsed)
	t.settling = max(t.settling-elapsed, 0)
	step := wall.Sub(t.now)
	switch {
	case wall.Before(t.earliest):
		return t, 0 // the clock is wrong
	case !t.trusted && t.settling > 0 && wall.Before(t.recorded.Add(-recordTolerance)):
		return t, 0 // it may still be set
	}
	t.now, t.trusted = wall, true
	if step.Abs() <= maxStep {
		step = 0
	}
	return t, step
}

// clock is the current timeline. It is safe for concurrent use.
type clock struct {
	wall  func() time.Time
	built time.Time

	mu       sync.Mutex // guards the following fields
	timeline timeline
	checked  time.Time // with a monotonic reading
}

func newClock(wall func() time.Time, built time.Time) *clock {
	c := &clock{wall: wall, built: built}
	c.start(time.Time{})
	return c
}

// start restarts the timeline with the newest recorded use.
func (c *clock) start(recorded time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timeline, c.checked = startTimeline(c.wall(), recorded, c.built), time.Now()
}

// now returns the time of a use that happens now, and whether it is the current time. Otherwise the current time is
// unknown.
func (c *clock) now() (now time.Time, trusted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.timeline.now.Add(time.Since(c.checked)), c.timeline.trusted
}

// check reads the system clock. It returns the current time and the required shift of all last uses.
func (c *clock) check() (now time.Time, shift time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	checked := time.Now()
	c.timeline, shift = c.timeline.advance(c.wall(), checked.Sub(c.checked))
	c.checked = checked
	return c.timeline.now, shift
}
