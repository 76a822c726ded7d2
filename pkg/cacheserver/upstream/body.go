// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
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

const (
	// firstBuffer is the memory, in bytes, for a body of unknown size, bufferGrowth the factor by which it grows.
	firstBuffer  = 16 << 10
	bufferGrowth = 16
)

// readAll appends the body of a response to the content that was received before, up to limit bytes in all. With an error of
// the body, it returns the content before the error. It needs little more memory than that of the result: io.ReadAll needs
// twice as much, which the process keeps until the garbage collector runs.
func readAll(resp *http.Response, req request, before []byte, limit int64) ([]byte, error) {
	left := limit - int64(len(before))
	if size := resp.ContentLength; 0 <= size && size <= left {
		content := make([]byte, int64(len(before))+size)
		n, err := io.ReadFull(resp.Body, content[copy(content, before):])
		return content[:len(before)+n], err
	}
	content, err := readGrowing(resp.Body, left+1)
	if len(before) > 0 {
		content = slices.Concat(before, content)
	}
	if err != nil {
		return content, err
	}
	if int64(len(content)) > limit {
		return nil, &Error{Op: req.String(), Err: fmt.Errorf("the answer has more than %d bytes", limit)}
	}
	return content, nil
}

// readGrowing reads a body of unknown size up to limit bytes. With an error of the body, it returns the content before the
// error.
func readGrowing(body io.Reader, limit int64) ([]byte, error) {
	content := make([]byte, 0, min(firstBuffer, limit))
	for {
		n, err := io.ReadFull(body, content[len(content):cap(content)])
		content = content[:len(content)+n]
		// The errors of a body are of type *Error, so these two are of ReadFull.
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			if len(content) < cap(content)/2 {
				content = slices.Clone(content)
			}
			return content, nil
		}
		if err != nil || int64(len(content)) == limit {
			return content, err
		}
		content = append(make([]byte, 0, min(int64(cap(content))*bufferGrowth, limit)), content...)
	}
}
