// SPDX-License-Identifier: Apache-2.0

package poll

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

var errNotYet = errors.New("2 of 3 nodes")

func TestUntilReturnsWhenTheCheckSucceeds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start, calls := time.Now(), 0
		err := Until(t.Context(), time.Second, time.Minute, func(context.Context) error {
			if calls++; calls < 4 {
				return errNotYet
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := time.Since(start); got != 3*time.Second {
			t.Errorf("took %s, want 3s: the first check is made at once", got)
		}
	})
}

func TestUntilEndsWithTheReason(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		err := Until(t.Context(), time.Second, 90*time.Second, func(ctx context.Context) error {
			if time.Since(start) < 80*time.Second {
				return errNotYet
			}
			<-ctx.Done()
			return ctx.Err()
		})
		if want := "not within 1m30s: 2 of 3 nodes; the last check had no result after 10s"; err == nil || err.Error() != want {
			t.Errorf("error is %v, want %q", err, want)
		}
		if got := time.Since(start); got != 90*time.Second {
			t.Errorf("took %s, want 90s although the check hung", got)
		}
	})
}

func TestUntilStops(t *testing.T) {
	t.Parallel()
	refused := errors.New("refused")
	calls := 0
	err := Until(t.Context(), time.Hour, time.Hour, func(context.Context) error {
		calls++
		return Stop(refused)
	})
	if err != refused || calls != 1 { //nolint:errorlint // the error itself, not an error that wraps it
		t.Errorf("%d calls, error %v, want one call and the error itself", calls, err)
	}
}

func TestUntilTellsThatItWasCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	err := Until(ctx, time.Hour, time.Hour, func(context.Context) error {
		cancel()
		return errNotYet
	})
	if !errors.Is(err, context.Canceled) || !errors.Is(err, errNotYet) {
		t.Errorf("error is %v, want the cancellation and the reason of the wait", err)
	}
}
