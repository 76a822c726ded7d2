// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestQueueIsInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(2, time.Minute, newMetrics(nil))
		for range 2 {
			if err := q.acquire(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		const waiters = 20
		turns := make(chan int, waiters)
		leave := errors.New("left")
		var want []int
		for i := range waiters {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			go func() {
				switch err := q.acquire(ctx); {
				case errors.Is(err, leave):
				case err != nil:
					t.Error(err)
				default:
					turns <- i
					q.release()
				}
			}()
			synctest.Wait() // it is in the queue
			if i%3 == 1 {
				cancel(leave)
				synctest.Wait()
			} else {
				want = append(want, i)
			}
		}
		q.release()
		synctest.Wait()
		var got []int
		for range want {
			got = append(got, <-turns)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
	})
}

func TestQueueIsPatientForTheTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const timeout = 5 * time.Second
		q := newQueue(1, timeout, newMetrics(nil))
		if err := q.acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := q.acquire(t.Context()); !errors.Is(err, ErrBusy) || time.Since(start) != timeout {
			t.Errorf("%v after %s, want %v after %s", err, time.Since(start), ErrBusy, timeout)
		}
		time.AfterFunc(timeout-1, q.release)
		if err := q.acquire(t.Context()); err != nil {
			t.Errorf("a turn in time: %v", err)
		}
	})
}
