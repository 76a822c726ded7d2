// SPDX-License-Identifier: Apache-2.0

package answers

import (
	"errors"
	"testing"
	"time"
)

func TestDecide(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	l := Lifetimes{Fresh: 10 * time.Second, FreshNegative: 5 * time.Second, MaxStale: time.Hour}
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	missing := errors.New("not found")
	positive := entry[string]{value: "v", confirmed: at(0)}
	single := entry[string]{negative: missing, rejected: at(0)}
	negative := entry[string]{negative: missing, rejected: at(0), repeated: true}
	both := entry[string]{value: "v", confirmed: at(0), negative: missing, rejected: at(100), repeated: true}
	failing := entry[string]{value: "v", confirmed: at(0), retryAt: at(300)}
	for _, test := range []struct {
		name      string
		entry     entry[string]
		lifetimes Lifetimes
		now       int
		failed    bool
		want      verdict
	}{
		{"empty", entry[string]{}, l, 0, false, expired},
		{"empty, failed", entry[string]{}, l, 0, true, expired},
		{"positive", positive, l, 9, false, freshValue},
		{"positive, old", positive, l, 10, false, expired},
		{"positive, failed", positive, l, 10, true, staleValue},
		{"positive, failed, last moment", positive, l, 3599, true, staleValue},
		{"positive, failed, too old", positive, l, 3600, true, expired},
		{"single negative", single, l, 0, false, expired},
		{"single negative, failed", single, l, 4, true, staleNegative},
		{"negative", negative, l, 4, false, freshNegative},
		{"negative, old", negative, l, 5, false, expired},
		{"negative, failed", negative, l, 5, true, staleNegative},
		{"negative, failed, too old", negative, l, 3600, true, expired},
		{"negative after positive", both, l, 104, false, freshNegative},
		{"negative after positive, old", both, l, 105, false, expired},
		{"negative after positive, failed", both, l, 105, true, staleValue},
		{"negative after positive, failed, positive too old", both, l, 3650, true, staleNegative},
		{"failing", failing, l, 299, false, staleValue},
		{"failing, retry", failing, l, 300, false, expired},
		{"failing, too old before the retry", entry[string]{value: "v", confirmed: at(0), retryAt: at(4000)}, l, 3700, false, expired},
		{"positive, never fresh", positive, Lifetimes{MaxStale: time.Hour}, 0, false, expired},
		{"positive, never stale", positive, Lifetimes{Fresh: 10 * time.Second}, 10, true, expired},
		{"restored with a time in the future", positive, l, -1000, true, staleValue},
	} {
		if got := decide(test.entry, test.lifetimes, at(test.now), test.failed); got != test.want {
			t.Errorf("%s: got %d, want %d", test.name, got, test.want)
		}
	}
}
