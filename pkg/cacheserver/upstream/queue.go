// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	// defaultMaxTransfers bounds the buffers of transfers to some MiB. What waits for longer than the queue timeout is
	// left to its clients, which then ask the upstream themselves.
	defaultMaxTransfers = 128
	// defaultMaxRequests is for requests that take little more than a round trip.
	defaultMaxRequests  = 128
	defaultQueueTimeout = 5 * time.Second
)

// queue bounds what is under way at the upstream. Those who wait get their turn in the order in which they came.
type queue struct {
	turns   *semaphore.Weighted
	timeout time.Duration
	metrics *metrics
}

func newQueue(limit int, timeout time.Duration, m *metrics) *queue {
	return &queue{turns: semaphore.NewWeighted(int64(limit)), timeout: timeout, metrics: m}
}

// acquire waits for a turn, which the caller gives back with release. It returns ErrBusy when there is none within the
// timeout, or the context's error.
func (q *queue) acquire(ctx context.Context) error {
	if q.turns.TryAcquire(1) {
		return nil
	}
	q.metrics.waiting.Inc()
	defer q.metrics.waiting.Dec()
	limited, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	if q.turns.Acquire(limited, 1) == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	q.metrics.busy.Inc()
	return ErrBusy
}

func (q *queue) release() { q.turns.Release(1) }
