// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// body is an answer's body. The idle time counts only while a Read waits, so that a slow reader is no slow upstream.
type body struct {
	io.ReadCloser
	// ctx is that of the request, which the body belongs to until it is closed.
	ctx      context.Context
	cancel   context.CancelCauseFunc
	idle     time.Duration
	op       string
	received prometheus.Counter
	release  func() // gives back the turn of the request
}

func (b *body) Read(p []byte) (int, error) {
	timer := time.AfterFunc(b.idle, func() { b.cancel(errIdleTimeout) })
	n, err := b.ReadCloser.Read(p)
	timer.Stop()
	b.received.Add(float64(n))
	// An upstream that notices the end of the request may end its answer before the connection is closed.
	if err != nil && (err != io.EOF || b.ctx.Err() != nil) {
		err = classify(b.ctx, b.op, err)
	}
	return n, err
}

func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.cancel(nil)
	b.release()
	return err
}
