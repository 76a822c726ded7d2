// SPDX-License-Identifier: Apache-2.0

package download

import "time"

const (
	// meterSlot and meterSlots make a window of 1 s: long enough to bridge the pauses of a shaped connection, short enough
	// to observe the effect of another connection.
	meterSlot  = 125 * time.Millisecond
	meterSlots = 8
)

// meter measures the throughput of a connection over the last second. It is not safe for concurrent use.
type meter struct {
	began time.Time
	slots [meterSlots]int64 // bytes by slot of time, a ring
	slot  int64             // the latest slot, counted from began
}

func newMeter(now time.Time) meter { return meter{began: now} }

// add counts bytes that were received now.
func (m *meter) add(n int64, now time.Time) {
	m.advance(now)
	m.slots[m.slot%meterSlots] += n
}

// rate returns bytes per second.
func (m *meter) rate(now time.Time) float64 {
	m.advance(now)
	var sum int64
	for _, n := range m.slots {
		sum += n
	}
	// The latest slot has only partly passed.
	passed := min(now.Sub(m.began), now.Sub(m.began)%meterSlot+(meterSlots-1)*meterSlot)
	return float64(sum) / max(passed, meterSlot).Seconds()
}

// advance clears the slots that passed without bytes.
func (m *meter) advance(now time.Time) {
	current := int64(now.Sub(m.began) / meterSlot)
	for n := min(current-m.slot, meterSlots); n > 0; n-- {
		m.slots[(current-n+1)%meterSlots] = 0
	}
	m.slot = max(m.slot, current)
}
