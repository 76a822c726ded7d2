// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Shaping makes the upstream as slow as a real one. The zero value is as fast as this machine.
type Shaping struct {
	// Latency passes before the first byte of every answer.
	Latency time.Duration
	// BytesPerSecond limits all bodies together, as a line that all clients share; 0 means no limit.
	BytesPerSecond int64
}

// Validate returns an error that names the field which is out of range.
func (s Shaping) Validate() error {
	if s.Latency < 0 {
		return fmt.Errorf("latency: is %s, must not be negative", s.Latency)
	}
	if s.BytesPerSecond < 0 {
		return fmt.Errorf("bytesPerSecond: is %d, must not be negative; 0 means no limit", s.BytesPerSecond)
	}
	return nil
}

const (
	// maxChunk is the most that is sent at once, also without a limit.
	maxChunk = 32 << 10
	// slice is the time that one chunk takes under a limit: a change of the limit is felt after that time, and
	// late timers are made up for within it.
	slice = 20 * time.Millisecond
)

// shaper is the line that all answers share. It is safe for concurrent use.
type shaper struct {
	mu      sync.Mutex // guards the fields below
	shaping Shaping
	free    time.Time // when all bytes that were admitted so far are through
}

func (s *shaper) set(shaping Shaping) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shaping, s.free = shaping, time.Time{}
}

func (s *shaper) get() Shaping {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shaping
}

// chunk returns how many of n bytes may be admitted at once.
func (s *shaper) chunk(n int) int {
	limit := maxChunk
	if rate := s.get().BytesPerSecond; rate > 0 {
		limit = int(min(maxChunk, max(1, rate*int64(slice)/int64(time.Second))))
	}
	return min(n, limit)
}

// admit waits until the line is free for n more bytes, or returns the cause of ctx's end.
func (s *shaper) admit(ctx context.Context, n int) error {
	return wait(ctx, s.reserve(n))
}

// reserve takes the line for n bytes and returns the time until they may be sent.
func (s *shaper) reserve(n int) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	rate := s.shaping.BytesPerSecond
	if rate == 0 {
		return 0
	}
	now := time.Now()
	if earliest := now.Add(-slice); s.free.Before(earliest) {
		s.free = earliest
	}
	s.free = s.free.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	return s.free.Sub(now)
}

// wait returns nil after d, or the cause of ctx's end if that comes first.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
