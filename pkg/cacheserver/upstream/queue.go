// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	// defaultMaxTransfers limits the buffers of transfers to some MiB. After the queue timeout, a request fails, and its
	// client falls back to the upstream.
	defaultMaxTransfers = 128
	// defaultMaxRequests applies to requests that need little more than one round trip.
	defaultMaxRequests  = 128
	defaultQueueTimeout = 5 * time.Second
)

// queue limits the concurrent requests to the upstream. Waiting requests are admitted in the order of their arrival. It is
// safe for concurrent use.
type queue struct {
	slots   *semaphore.Weighted
	timeout time.Duration
	metrics *metrics
}

func newQueue(limit int, timeout time.Duration, m *metrics) *queue {
	return &queue{slots: semaphore.NewWeighted(int64(limit)), timeout: timeout, metrics: m}
}

// acquire waits for a free slot, which the caller returns with release. It returns ErrBusy if no slot becomes free within
// the timeout, or the cause of the context's end.
func (q *queue) acquire(ctx context.Context) error {
	if q.slots.TryAcquire(1) {
		return nil
	}
	q.metrics.waiting.Inc()
	defer q.metrics.waiting.Dec()
	limited, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	if q.slots.Acquire(limited, 1) == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	q.metrics.busy.Inc()
	return ErrBusy
}

func (q *queue) release() { q.slots.Release(1) }
