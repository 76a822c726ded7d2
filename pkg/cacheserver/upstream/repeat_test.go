// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

func TestRepeatAfter(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err    error
		passed time.Duration
		pause  time.Duration
		repeat bool
	}{
		{nil, 0, 0, false},
		{errors.New("other"), 0, 0, false},
		{&Error{StatusCode: 500}, 0, failurePause, true},
		{&Error{StatusCode: 502}, 0, failurePause, true},
		{&Error{StatusCode: 503}, repeatBudget, failurePause, true},
		{&Error{StatusCode: 504}, repeatBudget + 1, 0, false},
		{&Error{StatusCode: 503, RetryAfter: time.Second}, 0, 0, false},
		{&Error{StatusCode: 429}, 0, limitPause, true},
		{&Error{StatusCode: 429, RetryAfter: time.Second}, 0, 0, false},
		{&Error{StatusCode: 404}, 0, 0, false},
		{&Error{StatusCode: 401}, 0, 0, false},
		{&Error{Err: fmt.Errorf("reading: %w", io.ErrUnexpectedEOF)}, 0, 0, true},
		{&Error{Err: errIdleTimeout}, 0, 0, false},
		{&Error{Err: ErrBusy}, 0, 0, false},
	} {
		pause, repeat := repeatAfter(test.err, test.passed)
		if pause != test.pause || repeat != test.repeat {
			t.Errorf("%v after %s: %s, %t", test.err, test.passed, pause, repeat)
		}
	}
}

func TestTwice(t *testing.T) {
	t.Parallel()
	for failures, want := range []string{"sent", "sent", "upstream answered 503"} {
		synctest.Test(t, func(t *testing.T) {
			calls := 0
			got, err := twice(t.Context(), func() (string, error) {
				if calls++; calls <= failures {
					return "", &Error{StatusCode: 503}
				}
				return "sent", nil
			})
			if got != "sent" && err == nil || (err == nil) != (want == "sent") || calls != min(failures+1, 2) {
				t.Errorf("%d failures: %q, %v after %d calls", failures, got, err, calls)
			}
		})
	}
}
