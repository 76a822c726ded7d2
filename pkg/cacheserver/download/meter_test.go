// SPDX-License-Identifier: Apache-2.0

package download

import (
	"math"
	"testing"
	"time"
)

func TestMeter(t *testing.T) {
	t.Parallel()
	start := time.Unix(1000, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	m := newMeter(start)
	if got := m.rate(start); got != 0 {
		t.Errorf("at the start: %v", got)
	}
	for ms := 0; ms < 4000; ms += 50 {
		m.add(50, at(ms)) // 1000 bytes per second
	}
	if got := m.rate(at(4000)); math.Abs(got-1000) > 150 {
		t.Errorf("at 1000 bytes per second: %v", got)
	}
	if got := m.rate(at(4500)); got < 300 || got > 700 {
		t.Errorf("500 ms after the last byte: %v", got)
	}
	if got := m.rate(at(5100)); got != 0 {
		t.Errorf("more than 1 s after the last byte: %v", got)
	}
	m.add(100, at(600_000))
	if got := m.rate(at(600_100)); got < 50 || got > 900 {
		t.Errorf("after a long pause: %v", got)
	}
}
