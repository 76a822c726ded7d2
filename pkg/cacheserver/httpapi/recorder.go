// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/oci"
)

// writeChunk is what a client must take within the stall timeout, in bytes.
const writeChunk = 1 << 20

// staleWarning is the warning of RFC 7234, section 5.5.2.
const staleWarning = `111 registry-cache "Revalidation Failed"`

// recorder is a response writer that knows what was sent, and gives up on clients that take nothing.
type recorder struct {
	http.ResponseWriter
	controller *http.ResponseController
	stall      time.Duration

	status  int
	sent    int64
	shared  int64          // of what was sent, bytes from a fetch that another request had begun
	outcome result.Outcome // empty unless something of the cache was served
	err     error          // why the answer is not, or not all of, what was asked for
}

func newRecorder(w http.ResponseWriter, stall time.Duration) *recorder {
	return &recorder{ResponseWriter: w, controller: http.NewResponseController(w), stall: stall}
}

// Unwrap serves http.ResponseController.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (w *recorder) WriteHeader(status int) {
	_ = w.note(w.extend())
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *recorder) Write(p []byte) (int, error) {
	w.begin()
	if err := w.extend(); err != nil {
		return 0, w.note(err)
	}
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	return n, w.note(err)
}

// ReadFrom implements io.ReaderFrom, so that files go from the kernel to the client without being copied here.
func (w *recorder) ReadFrom(src io.Reader) (int64, error) {
	w.begin()
	// io.CopyN limits the file; the limits below must be the only ones for the kernel to do the work.
	limit, limited := src.(*io.LimitedReader)
	if !limited {
		limit = &io.LimitedReader{R: src, N: 1<<63 - 1}
	}
	if growing, ok := limit.R.(chunked); ok {
		return w.readChunks(growing, limit)
	}
	if _, file := limit.R.(syscall.Conn); !file {
		return io.Copy(streamer{w}, src)
	}
	var total int64
	for limit.N > 0 {
		if err := w.extend(); err != nil {
			return total, w.note(err)
		}
		want := min(limit.N, writeChunk)
		n, err := io.Copy(w.ResponseWriter, &io.LimitedReader{R: limit.R, N: want})
		total += n
		limit.N -= n
		w.sent += n
		if err != nil || n < want {
			return total, w.note(err)
		}
	}
	return total, nil
}

// readChunks sends a file that grows, as far as the kernel can send it, and the rest like any other source.
func (w *recorder) readChunks(growing chunked, limit *io.LimitedReader) (int64, error) {
	var total int64
	for limit.N > 0 {
		chunk, err := growing.Chunk(min(limit.N, writeChunk))
		switch {
		case err == io.EOF:
			return total, nil
		case err != nil:
			return total, w.note(err)
		case chunk == nil:
			n, err := io.Copy(streamer{w}, limit)
			return total + n, err
		}
		if err := w.extend(); err != nil {
			return total, w.note(err)
		}
		want := chunk.N
		n, err := io.Copy(w.ResponseWriter, chunk)
		growing.Sent(n)
		total += n
		limit.N -= n
		w.sent += n
		if err != nil || n < want {
			return total, w.note(err)
		}
		// The next bytes may take long.
		if err := supported(w.controller.Flush()); err != nil {
			return total, w.note(err)
		}
	}
	return total, nil
}

// streamer sends what it gets at once. A source can be slow, too, so each write gets time of its own.
type streamer struct{ recorder *recorder }

func (s streamer) Write(p []byte) (int, error) {
	n, err := s.recorder.Write(p)
	if err != nil {
		return n, err
	}
	return n, s.recorder.note(supported(s.recorder.controller.Flush()))
}

func (w *recorder) begin() {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
}

// extend gives the client time for the next chunk.
func (w *recorder) extend() error {
	return supported(w.controller.SetWriteDeadline(time.Now().Add(w.stall)))
}

// limitReading gives the client time for what it sends.
func (w *recorder) limitReading(timeout time.Duration) error {
	return supported(w.controller.SetReadDeadline(time.Now().Add(timeout)))
}

// supported drops the error of a response writer without deadlines, such as that of a test.
func supported(err error) error {
	if errors.Is(err, http.ErrNotSupported) {
		return nil
	}
	return err
}

// note keeps the first error for the log.
func (w *recorder) note(err error) error {
	if w.err == nil {
		w.err = err
	}
	return err
}

// tell notes where the answer comes from. A client learns when that is not what the upstream would say.
func (w *recorder) tell(outcome result.Outcome) {
	w.outcome = outcome
	if outcome == result.Stale {
		w.Header().Set("Warning", staleWarning)
	}
}

// failFor answers with the status for an error of the cache.
func (w *recorder) failFor(r *http.Request, notFound oci.ErrorCode, err error) {
	reason := result.Unavailable
	if explained, ok := errors.AsType[*result.Error](err); ok {
		reason = explained.Reason
	}
	switch reason {
	case result.NotFound:
		w.fail(r, http.StatusNotFound, notFound, err)
	case result.Denied:
		// Not 401, which would make clients send their credentials here.
		w.fail(r, http.StatusForbidden, oci.CodeDenied, err)
	case result.RateLimited:
		w.fail(r, http.StatusServiceUnavailable, oci.CodeTooManyRequests, err)
	case result.Busy:
		w.fail(r, http.StatusServiceUnavailable, oci.CodeUnavailable, err)
	case result.TimedOut:
		w.fail(r, http.StatusGatewayTimeout, oci.CodeUnavailable, err)
	default:
		w.fail(r, http.StatusBadGateway, oci.CodeUnavailable, err)
	}
}

// fail answers with an error body. Nothing may have been written before.
func (w *recorder) fail(r *http.Request, status int, code oci.ErrorCode, err error) {
	body, marshalErr := json.Marshal(oci.ErrorBody{Errors: []oci.Error{{Code: code, Message: err.Error()}}})
	_ = w.note(errors.Join(err, marshalErr))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return
	}
	if _, err := w.Write(body); err != nil {
		_ = w.note(err)
	}
}
