// SPDX-License-Identifier: Apache-2.0

package download

import (
	"sync"
	"time"
)

const (
	// paceSample is the least that a connection must have transferred for its throughput to count, in bytes.
	paceSample = 1 << 20
	// paceLifetime is how long an observation is used. Lines and registries change.
	paceLifetime = 10 * time.Minute
)

// pace remembers the throughput of the latest connection to the upstream that transferred enough to tell. It is safe for
// concurrent use.
type pace struct {
	mu   sync.Mutex // guards rate and at
	rate float64    // bytes per second
	at   time.Time
}

// observe counts a connection that received bytes between two times.
func (p *pace) observe(received int64, first, last time.Time) {
	passed := last.Sub(first)
	if received < paceSample || passed <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate, p.at = float64(received)/passed.Seconds(), last
}

// typical returns bytes per second, 0 if there is no recent observation.
func (p *pace) typical(now time.Time) float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.at) > paceLifetime {
		return 0
	}
	return p.rate
}
