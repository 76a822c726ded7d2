// SPDX-License-Identifier: Apache-2.0

// Package poll waits for a state that nothing announces.
package poll

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// stop marks an error after which waiting makes no sense.
type stop struct{ err error }

func (s stop) Error() string { return s.err.Error() }
func (s stop) Unwrap() error { return s.err }

// Stop returns an error that makes Until return err at once.
func Stop(err error) error { return stop{err} }

// Until calls check now and then every interval until it returns nil. It returns what an error made with Stop wraps;
// after timeout, or when ctx ends, it returns the last error of check: that is the reason of the wait. If the end of the wait
// has cut off a check that was longer than interval, the error states the duration of this check, too.
//
// The context of check ends with the wait, so a call that hangs cannot prolong it.
func Until(ctx context.Context, interval, timeout time.Duration, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()

	var reason error
	for {
		start := time.Now()
		err := check(ctx)
		if err == nil {
			return nil
		}
		if permanent, ok := errors.AsType[stop](err); ok {
			return permanent.err
		}
		// A call that was cut off by the deadline says less than the one before it.
		if reason == nil || ctx.Err() == nil {
			reason = err
		} else if took := time.Since(start); took > interval {
			reason = fmt.Errorf("%w; the last check had no result after %s", reason, took.Round(time.Millisecond))
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("not within %s: %w", timeout, reason)
			}
			return fmt.Errorf("%w, while waiting: %w", ctx.Err(), reason)
		case <-ticker.C:
		}
	}
}
