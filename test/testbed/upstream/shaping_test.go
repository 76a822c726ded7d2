// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestShaperKeepsTheRate(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ rate, senders, bytes int }{
		"one answer":               {rate: 1_000_000, senders: 1, bytes: 3_000_000},
		"many answers share it":    {rate: 1_000_000, senders: 10, bytes: 300_000},
		"slower than a chunk":      {rate: 100, senders: 1, bytes: 500},
		"faster than timers are":   {rate: 4_000_000_000, senders: 2, bytes: 2_000_000_000},
		"less than one byte slice": {rate: 1, senders: 1, bytes: 5},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var line shaper
				line.set(Shaping{BytesPerSecond: int64(tc.rate)})
				start := time.Now()
				var senders sync.WaitGroup
				for range tc.senders {
					senders.Go(func() {
						for left := tc.bytes; left > 0; {
							n := line.chunk(left)
							if err := line.admit(t.Context(), n); err != nil {
								t.Error(err)
								return
							}
							left -= n
						}
					})
				}
				senders.Wait()
				want := time.Duration(float64(tc.senders*tc.bytes) / float64(tc.rate) * float64(time.Second))
				if took := time.Since(start); took > want || took < want-2*slice {
					t.Errorf("%d bytes at %d bytes per second took %s, want %s", tc.senders*tc.bytes, tc.rate, took, want)
				}
			})
		})
	}
}

func TestShaperWithoutLimitDoesNotWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var line shaper
		start := time.Now()
		if err := line.admit(t.Context(), 1<<40); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("waited %s", took)
		}
	})
}

func TestShaperLetsGoOfAnEndedRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var line shaper
		line.set(Shaping{BytesPerSecond: 1})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if err := line.admit(ctx, 3600); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got error %v, want the context's", err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("waited %s, want 1s", took)
		}
	})
}

func TestShaperStartsAnewWithANewRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var line shaper
		line.set(Shaping{BytesPerSecond: 1})
		line.reserve(3600) // somebody waits for an hour
		line.set(Shaping{BytesPerSecond: 1000})
		start := time.Now()
		if err := line.admit(t.Context(), 1000); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("waited %s, want at most 1s", took)
		}
	})
}
