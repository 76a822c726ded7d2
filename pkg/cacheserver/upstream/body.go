// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// body is the body of a response. The idle timeout runs only during a Read, so a slow reader is not mistaken for a slow
// upstream. It is not safe for concurrent use.
type body struct {
	io.ReadCloser
	// ctx is the context of the request, which lasts until the body is closed.
	ctx      context.Context
	cancel   context.CancelCauseFunc
	idle     time.Duration
	op       string
	received prometheus.Counter
	release  func() // releases the slot of the request in its queue
}

func (b *body) Read(p []byte) (int, error) {
	timer := time.AfterFunc(b.idle, func() { b.cancel(errIdleTimeout) })
	n, err := b.ReadCloser.Read(p)
	timer.Stop()
	b.received.Add(float64(n))
	// After a timeout, the read can return io.EOF, if the upstream noticed the end of the request and ended the response.
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

// readAll appends a body to the content that was received before, up to limit bytes in all. With an error of the body, it
// returns the content before the error.
func readAll(body io.Reader, req request, before []byte, limit int64) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(body, limit+1-int64(len(before))))
	content = append(before, content...)
	if err != nil {
		return content, err
	}
	if int64(len(content)) > limit {
		return nil, &Error{Op: req.String(), Err: fmt.Errorf("the answer has more than %d bytes", limit)}
	}
	return content, nil
}
