// SPDX-License-Identifier: Apache-2.0

package download

import "time"

// flow is the state of one transfer: Start is the next byte that it receives, End its limit, -1 while the size of the
// blob is unknown.
type flow struct {
	Span
	began    time.Time
	header   time.Duration // from the request to the first byte, zero before it
	lastByte time.Time     // zero before the first byte
	rate     float64       // bytes per second
	// waits is the share of the last second in which the transfer waited for the upstream with an empty receive buffer,
	// from 0 to 1.
	waits float64
	// replaced reports that a second transfer for the same bytes is running, replacement that this one was started to
	// replace another one.
	replaced, replacement bool
}

func (f flow) covers(offset int64) bool {
	return f.Start <= offset && (f.End < 0 || offset < f.End)
}

// age is the time since the first byte, or since the request before it.
func (f flow) age(now time.Time) time.Duration { return now.Sub(f.began) - f.header }

// silence is the time without bytes, and the time that is tolerated.
func (f flow) silence(now time.Time) (passed, tolerated time.Duration) {
	if f.lastByte.IsZero() {
		return now.Sub(f.began), headerlessAfter
	}
	return now.Sub(f.lastByte), silentAfter
}
