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
	broken := &Error{Err: fmt.Errorf("reading: %w", io.ErrUnexpectedEOF)}
	for _, test := range []struct {
		err        error
		repetition int
		pause      time.Duration
		again      bool
	}{
		{nil, 1, 0, false},
		{errors.New("other"), 1, 0, false},
		{&Error{StatusCode: 500}, 1, failurePause, true},
		{&Error{StatusCode: 502}, 1, failurePause, true},
		{&Error{StatusCode: 503}, 1, failurePause, true},
		{&Error{StatusCode: 503}, 2, failurePause, false},
		{&Error{StatusCode: 503, RetryAfter: time.Second}, 1, time.Second, true},
		{&Error{StatusCode: 503, RetryAfter: 2 * time.Second}, 1, 2 * time.Second, false},
		{&Error{StatusCode: 408}, 1, limitPause, true},
		{&Error{StatusCode: 429}, 1, limitPause, true},
		{&Error{StatusCode: 429}, 5, 5 * limitPause, true},
		{&Error{StatusCode: 429}, 6, 6 * limitPause, false},
		{&Error{StatusCode: 429, RetryAfter: time.Minute}, 1, time.Minute, false},
		{&Error{StatusCode: 404}, 1, 0, false},
		{&Error{StatusCode: 401}, 1, 0, false},
		{broken, 0, 0, true},
		{broken, 3, 0, true},
		{broken, 4, 0, false},
		{&Error{Err: errIdleTimeout}, 1, 0, false},
		{&Error{Err: ErrBusy}, 1, 0, false},
	} {
		pause, again := repeatAfter(test.err, test.repetition)
		if pause != test.pause || again != test.again {
			t.Errorf("%v, repetition %d: %s, %t", test.err, test.repetition, pause, again)
		}
	}
}

func TestRepeat(t *testing.T) {
	t.Parallel()
	broken := &Error{Err: io.ErrUnexpectedEOF}
	for _, test := range []struct {
		name     string
		err      error
		duration time.Duration // of each request
		failures int
		progress bool
		requests int
		passed   time.Duration
	}{
		{"success", nil, time.Second, 0, false, 1, time.Second},
		{"one error", &Error{StatusCode: 503}, 0, 1, false, 2, failurePause},
		{"two errors", &Error{StatusCode: 503}, 0, 2, false, 2, failurePause},
		{"limited", &Error{StatusCode: 429}, 0, 5, false, 6, 1500 * time.Millisecond},
		{"broken without progress", broken, 0, 100, false, 4, 0},
		{"broken with progress", broken, 0, 100, true, 101, 0},
		{"slow errors", broken, 3 * time.Second, 100, false, 2, 6 * time.Second},
		{"slow progress", broken, 3 * time.Second, 5, true, 6, 18 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			began, requests := time.Now(), 0
			_, err := repeat(t.Context(), func() (string, error) {
				time.Sleep(test.duration)
				if requests++; requests <= test.failures {
					return "", test.err
				}
				return "", nil
			}, func() bool { return test.progress })
			if failed := requests <= test.failures; (err != nil) != failed || requests != test.requests || time.Since(began) != test.passed {
				t.Errorf("%s: %v after %d requests in %s", test.name, err, requests, time.Since(began))
			}
		})
	}
}
