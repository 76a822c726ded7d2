// SPDX-License-Identifier: Apache-2.0

package answers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/registry-cache/extension/pkg/cacheserver/background"
	"github.com/registry-cache/extension/pkg/cacheserver/result"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	errMissing  = errors.New("missing")
	errDenied   = errors.New("denied")
	errFailed   = errors.New("failed")
	errLimited  = errors.New("rate limited")
	retryAfter  = 2 * time.Minute
	someOptions = Options[string, string]{
		Kind:      "test",
		Lifetimes: Lifetimes{Fresh: 10 * time.Second, FreshNegative: 5 * time.Second, MaxStale: time.Hour},
		MaxSize:   1 << 20,
		Size:      func(key, value string) int64 { return int64(len(key) + len(value)) },
		Classify: func(err error) (Class, time.Duration) {
			switch {
			case errors.Is(err, errMissing):
				return Negative, 0
			case errors.Is(err, errFailed):
				return Temporary, 0
			case errors.Is(err, errLimited):
				return Temporary, retryAfter
			}
			return Rejected, 0
		},
	}
)

// source is an upstream with one answer.
type source struct {
	value    string
	err      error
	requests int
}

func (s *source) request(context.Context) (string, error) {
	s.requests++
	return s.value, s.err
}

// check compares an answer of the table, and the number of requests for it.
func check(t *testing.T, step string, table *Table[string, string], s *source, value string, outcome result.Outcome, err error, requests int) {
	t.Helper()
	s.requests = 0
	got, gotErr := table.Get(t.Context(), "key", s.request)
	if !errors.Is(gotErr, err) || got.Value != value || got.Outcome != outcome || s.requests != requests {
		t.Errorf("%s: got %q, %q, %v with %d requests, want %q, %q, %v with %d", step, got.Value, got.Outcome, gotErr, s.requests, value, outcome, err, requests)
	}
}

// run calls f with a table in a bubble with its own clock.
func run(t *testing.T, o Options[string, string], f func(t *testing.T, table *Table[string, string])) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		group := background.New()
		defer group.Close()
		f(t, New(group, o))
	})
}

func TestConfirm(t *testing.T) {
	run(t, someOptions, func(t *testing.T, table *Table[string, string]) {
		s := &source{value: "1"}
		confirm := func(step, value string, outcome result.Outcome, err error, requests int) {
			t.Helper()
			s.requests = 0
			got, gotErr := table.Confirm(t.Context(), "key", s.request)
			if !errors.Is(gotErr, err) || got.Value != value || got.Outcome != outcome || s.requests != requests {
				t.Errorf("%s: got %q, %q, %v with %d requests, want %q, %q, %v with %d", step, got.Value, got.Outcome, gotErr, s.requests, value, outcome, err, requests)
			}
		}
		confirm("first", "1", result.Miss, nil, 1)
		s.value = "2"
		confirm("fresh", "2", result.Miss, nil, 1)
		check(t, "fresh after the confirmation", table, s, "2", result.Hit, nil, 0)
		s.err = errFailed
		confirm("failed", "2", result.Stale, nil, 1)
		confirm("failed recently", "2", result.Stale, nil, 0)
		time.Sleep(10 * time.Second)
		s.err = errMissing
		confirm("missing", "", "", errMissing, 1)
		confirm("missing twice", "", "", errMissing, 1)
		confirm("missing, remembered", "", "", errMissing, 0)
	})
}

func TestFreshAndStaleAnswers(t *testing.T) {
	run(t, someOptions, func(t *testing.T, table *Table[string, string]) {
		s := &source{value: "1"}
		check(t, "first", table, s, "1", result.Miss, nil, 1)
		check(t, "fresh", table, s, "1", result.Hit, nil, 0)
		time.Sleep(10 * time.Second)
		s.value = "2"
		check(t, "revalidated", table, s, "2", result.Miss, nil, 1)
		time.Sleep(10 * time.Second)
		s.value, s.err = "", errFailed
		check(t, "failed", table, s, "2", result.Stale, nil, 1)
		check(t, "failed a moment ago", table, s, "2", result.Stale, nil, 0)
		time.Sleep(10 * time.Second)
		check(t, "still failing", table, s, "2", result.Stale, nil, 1)
		time.Sleep(time.Hour - 20*time.Second - 1)
		check(t, "one nanosecond before maxStale", table, s, "2", result.Stale, nil, 1)
		time.Sleep(1 * time.Nanosecond)
		check(t, "maxStale", table, s, "", "", errFailed, 1)
		s.value, s.err = "3", nil
		check(t, "upstream works", table, s, "3", result.Miss, nil, 1)
	})
}

func TestRetryAfter(t *testing.T) {
	run(t, someOptions, func(t *testing.T, table *Table[string, string]) {
		s := &source{err: errLimited}
		check(t, "without an answer", table, s, "", "", errLimited, 1)
		check(t, "without an answer, again", table, s, "", "", errLimited, 1)
		s.value, s.err = "1", nil
		check(t, "first", table, s, "1", result.Miss, nil, 1)
		time.Sleep(10 * time.Second)
		s.err = errLimited
		check(t, "limited", table, s, "1", result.Stale, nil, 1)
		time.Sleep(retryAfter - 1)
		check(t, "before the end of Retry-After", table, s, "1", result.Stale, nil, 0)
		time.Sleep(1 * time.Nanosecond)
		s.err = nil
		check(t, "after it", table, s, "1", result.Miss, nil, 1)
	})
}

func TestNegativeAnswers(t *testing.T) {
	run(t, someOptions, func(t *testing.T, table *Table[string, string]) {
		s := &source{err: errMissing}
		check(t, "first", table, s, "", "", errMissing, 1)
		check(t, "second", table, s, "", "", errMissing, 1)
		check(t, "fresh", table, s, "", "", errMissing, 0)
		time.Sleep(5 * time.Second)
		check(t, "requested again", table, s, "", "", errMissing, 1)
		time.Sleep(5 * time.Second)
		s.err = errFailed
		check(t, "failed", table, s, "", "", errMissing, 1)
		check(t, "failed a moment ago", table, s, "", "", errMissing, 0)
		time.Sleep(time.Hour)
		check(t, "maxStale", table, s, "", "", errFailed, 1)
		s.value, s.err = "1", nil
		check(t, "created", table, s, "1", result.Miss, nil, 1)
		time.Sleep(10 * time.Second)
		s.value, s.err = "", errMissing
		check(t, "deleted", table, s, "", "", errMissing, 1)
		s.value, s.err = "2", nil
		check(t, "not deleted", table, s, "2", result.Miss, nil, 1)
		time.Sleep(10 * time.Second)
		s.value, s.err = "", errMissing
		check(t, "deleted again", table, s, "", "", errMissing, 1)
		check(t, "deleted indeed", table, s, "", "", errMissing, 1)
		check(t, "deleted a moment ago", table, s, "", "", errMissing, 0)
		time.Sleep(5 * time.Second)
		s.err = errFailed
		check(t, "failed after a negative answer", table, s, "2", result.Stale, nil, 1)
	})
}

func TestRejectedRequestDeletesTheAnswer(t *testing.T) {
	run(t, someOptions, func(t *testing.T, table *Table[string, string]) {
		s := &source{value: "1"}
		check(t, "first", table, s, "1", result.Miss, nil, 1)
		time.Sleep(10 * time.Second)
		s.value, s.err = "", errDenied
		check(t, "denied", table, s, "", "", errDenied, 1)
		s.err = errFailed
		check(t, "failed", table, s, "", "", errFailed, 1)
	})
}

func TestRestoredAnswers(t *testing.T) {
	o := someOptions
	var confirmed time.Time
	o.Restore = func(key string) (string, time.Time, bool) { return "stored " + key, confirmed, !confirmed.IsZero() }
	run(t, o, func(t *testing.T, table *Table[string, string]) {
		s := &source{err: errFailed}
		check(t, "nothing stored", table, s, "", "", errFailed, 1)
		confirmed = time.Now().Add(-time.Hour)
		check(t, "too old", table, s, "", "", errFailed, 1)
		table.Remove("key")
		confirmed = time.Now().Add(-50 * time.Minute)
		check(t, "stored", table, s, "stored key", result.Stale, nil, 1)
		time.Sleep(10 * time.Minute)
		check(t, "too old by now", table, s, "", "", errFailed, 1)
		s.value, s.err = "1", nil
		check(t, "upstream works", table, s, "1", result.Miss, nil, 1)
	})
}

func TestRequestsAreCoalesced(t *testing.T) {
	run(t, someOptions, func(t *testing.T, table *Table[string, string]) {
		proceed := make(chan struct{})
		requests := 0
		request := func(ctx context.Context) (string, error) {
			requests++
			select {
			case <-proceed:
				return "1", nil
			case <-ctx.Done():
				return "", context.Cause(ctx)
			}
		}
		first, leave := context.WithCancel(t.Context())
		var clients sync.WaitGroup
		clients.Go(func() {
			if _, err := table.Get(first, "key", request); !errors.Is(err, context.Canceled) {
				t.Errorf("the first client got %v", err)
			}
		})
		synctest.Wait()
		leave()
		for range 20 {
			clients.Go(func() {
				if got, err := table.Get(t.Context(), "key", request); got.Value != "1" || err != nil {
					t.Errorf("got %q, %v", got.Value, err)
				}
			})
		}
		synctest.Wait()
		close(proceed)
		clients.Wait()
		if requests != 1 {
			t.Errorf("%d requests, want 1", requests)
		}
	})
}

func TestCloseStoresNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		group := background.New()
		table := New(group, someOptions)
		var client sync.WaitGroup
		client.Go(func() {
			_, err := table.Get(t.Context(), "key", func(ctx context.Context) (string, error) {
				<-ctx.Done()
				return "", errMissing
			})
			if !errors.Is(err, errMissing) {
				t.Errorf("got %v", err)
			}
		})
		synctest.Wait()
		group.Close()
		client.Wait()
		if size := table.entries.Size(); size != 0 {
			t.Errorf("%d bytes are stored", size)
		}
	})
}

// The table never exceeds its size, and evicts the answers that were not used for the longest time.
func TestSizeIsLimited(t *testing.T) {
	o := someOptions
	const entries = 10
	o.MaxSize = entries * (entrySize + 100)
	o.Size = func(string, string) int64 { return 100 }
	run(t, o, func(t *testing.T, table *Table[string, string]) {
		for i := range 100 {
			table.Put(fmt.Sprint(i), "v")
			table.Put(fmt.Sprint(i), "w")
			if _, ok, err := table.stored("0", false); !ok || err != nil {
				t.Fatalf("after %d answers: the answer in use was evicted", i)
			}
			if size := table.entries.Size(); size > o.MaxSize || size != int64(len(table.entries.Keys()))*(entrySize+100) {
				t.Fatalf("after %d answers: %d entries with %d bytes", i, len(table.entries.Keys()), size)
			}
		}
		if kept := table.entries.Keys(); fmt.Sprint(kept) != "[91 92 93 94 95 96 97 98 99 0]" {
			t.Errorf("stored: %v", kept)
		}
	})
}

func TestFind(t *testing.T) {
	run(t, someOptions, func(t *testing.T, table *Table[string, string]) {
		confirmed := time.Now()
		table.Put("key", "v")
		table.Put("other", "w")
		time.Sleep(time.Hour)
		matches := func(_, value string) bool { return value == "v" }
		if found := table.Find(matches); len(found) != 1 || !found["key"].Equal(confirmed) {
			t.Errorf("found %v", found)
		}
		check(t, "missing", table, &source{err: errMissing}, "", "", errMissing, 1)
		if found := table.Find(matches); len(found) != 0 {
			t.Errorf("found %v after a negative answer", found)
		}
	})
}

func TestLargeAnswerIsNotStored(t *testing.T) {
	run(t, someOptions, func(t *testing.T, table *Table[string, string]) {
		table.Put("small", "v")
		table.Put("large", string(make([]byte, someOptions.MaxSize)))
		if kept := table.entries.Keys(); fmt.Sprint(kept) != "[small]" {
			t.Errorf("stored: %v", kept)
		}
		table.Remove("small")
		if size := table.entries.Size(); size != 0 {
			t.Errorf("%d bytes are stored", size)
		}
	})
}
