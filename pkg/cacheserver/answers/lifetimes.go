// SPDX-License-Identifier: Apache-2.0

package answers

import "time"

// Lifetimes define how long an answer of the upstream is used.
type Lifetimes struct {
	// Fresh is the time after a positive answer in which the upstream is not requested again. 0 requests the upstream for
	// each call, except for concurrent ones.
	Fresh time.Duration
	// FreshNegative is the same for negative answers, from the second one in a row on.
	FreshNegative time.Duration
	// MaxStale is the time after the last answer of the upstream in which this answer is used while the upstream fails.
	// 0 means that stale answers are not used.
	MaxStale time.Duration
}

// UsableStale reports whether an answer that the upstream returned at a time may be used at the time now while the upstream
// fails. The zero time means that there is no answer.
func (l Lifetimes) UsableStale(answered, now time.Time) bool {
	return !answered.IsZero() && now.Before(answered.Add(l.MaxStale))
}

// entry contains the last answers of the upstream for one key. The zero value has none.
type entry[V any] struct {
	value     V
	confirmed time.Time // of the last positive answer; zero without one
	negative  error     // the last negative answer; nil without one, and after a later positive answer
	rejected  time.Time // of the last negative answer; zero without one
	repeated  bool      // the answer before the last negative one was negative, too
	retryAt   time.Time // after a failure of the upstream: no request before
}

// verdict is the use of an entry.
type verdict int

const (
	// expired means that the upstream must be requested; after its failure, that the failure is the answer.
	expired verdict = iota
	freshValue
	freshNegative
	staleValue
	staleNegative
)

// decide returns the use of an entry. failed means that the upstream has just been requested and failed; without it, the
// upstream has not been requested.
//
// The newest answer decides while it is fresh. A single negative answer is never fresh: the next call of a client without
// the cache would get another answer. While the upstream fails, a positive answer has priority over a later
// negative one: upstreams return single 404 responses in an incident, and a tag that was deleted on purpose is used for no
// longer than MaxStale.
func decide[V any](e entry[V], l Lifetimes, now time.Time, failed bool) verdict {
	if !failed && !now.Before(e.retryAt) {
		switch {
		case e.negative != nil && e.repeated && now.Before(e.rejected.Add(l.FreshNegative)):
			return freshNegative
		case e.negative == nil && !e.confirmed.IsZero() && now.Before(e.confirmed.Add(l.Fresh)):
			return freshValue
		}
		return expired
	}
	switch {
	case l.UsableStale(e.confirmed, now):
		return staleValue
	case l.UsableStale(e.rejected, now):
		return staleNegative
	}
	return expired
}
