// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/oci"
)

// writeChunk is the number of bytes of a file that a client must receive within the stall timeout.
const writeChunk = 1 << 20

// staleWarning is the value of the header Warning according to RFC 7234, section 5.5.2.
const staleWarning = `111 registry-cache "Revalidation Failed"`

// response is a response writer that counts the sent bytes and ends responses to stalled clients. It is used by one
// goroutine.
type response struct {
	http.ResponseWriter
	controller *http.ResponseController
	stall      time.Duration
	encrypted  bool

	status  int
	sent    int64
	shared  int64          // those of the sent bytes that came from the download of another request
	outcome result.Outcome // empty for responses that are not from the cache
	readErr error          // of a file that the kernel could not read
	err     error          // the reason of an error response or of an incomplete one
}

func newResponse(w http.ResponseWriter, stall time.Duration, encrypted bool) *response {
	return &response{ResponseWriter: w, controller: http.NewResponseController(w), stall: stall, encrypted: encrypted}
}

// Unwrap serves http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (w *response) WriteHeader(status int) {
	_ = w.recordErr(w.extendDeadline())
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *response) Write(p []byte) (int, error) {
	w.begin()
	if err := w.extendDeadline(); err != nil {
		return 0, w.recordErr(err)
	}
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	return n, w.recordErr(err)
}

// ReadFrom implements io.ReaderFrom, so that the kernel sends files without copies to this process.
func (w *response) ReadFrom(src io.Reader) (int64, error) {
	w.begin()
	// io.CopyN passes a LimitedReader. The kernel sends a file only if there is exactly one LimitedReader around it.
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
		if err := w.extendDeadline(); err != nil {
			return total, w.recordErr(err)
		}
		want := min(limit.N, writeChunk)
		n, err := w.send(limit.R, want)
		total += n
		limit.N -= n
		w.sent += n
		if err != nil || n < want {
			w.readErr = readError(n, want, err)
			return total, w.recordErr(errors.Join(err, w.readErr))
		}
	}
	return total, nil
}

// send sends at most n bytes of a file. The kernel sends them, unless this process has to encrypt them.
func (w *response) send(file io.Reader, n int64) (int64, error) {
	if source, ok := file.(copier); ok && w.encrypted {
		return source.CopyTo(w.ResponseWriter, n)
	}
	return io.Copy(w.ResponseWriter, &io.LimitedReader{R: file, N: n})
}

// copier is a file that this process reads, see volume.File.CopyTo.
type copier interface {
	CopyTo(w io.Writer, n int64) (int64, error)
}

// readError returns the error if the file was the reason that fewer bytes were sent than wanted, nil if it was the client.
func readError(sent, want int64, err error) error {
	switch {
	case err == nil && sent < want:
		return fmt.Errorf("%w: the file is shorter than before", io.ErrUnexpectedEOF)
	case volume.IsReadFailure(err):
		return err
	}
	return nil
}

// readChunks sends a growing file: the kernel sends the chunks that are in the file, the streamer sends the rest.
func (w *response) readChunks(growing chunked, limit *io.LimitedReader) (int64, error) {
	var total int64
	for limit.N > 0 {
		chunk, err := growing.Chunk(min(limit.N, writeChunk))
		switch {
		case err == io.EOF:
			return total, nil
		case err != nil:
			return total, w.recordErr(err)
		case chunk == nil:
			n, err := io.Copy(streamer{w}, limit)
			return total + n, err
		}
		if err := w.extendDeadline(); err != nil {
			return total, w.recordErr(err)
		}
		want := chunk.N
		n, err := w.send(chunk.R, want)
		unreadable := readError(n, want, err)
		growing.Sent(n, unreadable)
		total += n
		limit.N -= n
		w.sent += n
		if unreadable != nil {
			continue // without the kernel
		}
		if err != nil || n < want {
			return total, w.recordErr(err)
		}
		// The next chunk can take long.
		if err := supported(w.controller.Flush()); err != nil {
			return total, w.recordErr(err)
		}
	}
	return total, nil
}

// streamer flushes each write, because the source can be slow. Each write has a deadline of its own.
type streamer struct{ response *response }

func (s streamer) Write(p []byte) (int, error) {
	n, err := s.response.Write(p)
	if err != nil {
		return n, err
	}
	return n, s.response.recordErr(supported(s.response.controller.Flush()))
}

func (w *response) begin() {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
}

// extendDeadline sets the deadline for the next chunk.
func (w *response) extendDeadline() error {
	return supported(w.controller.SetWriteDeadline(time.Now().Add(w.stall)))
}

// limitReading sets the deadline for the request body.
func (w *response) limitReading(timeout time.Duration) error {
	return supported(w.controller.SetReadDeadline(time.Now().Add(timeout)))
}

// supported ignores the error of response writers without deadlines, which tests use.
func supported(err error) error {
	if errors.Is(err, http.ErrNotSupported) {
		return nil
	}
	return err
}

// recordErr keeps the first error for the access log.
func (w *response) recordErr(err error) error {
	if w.err == nil {
		w.err = err
	}
	return err
}

// setOutcome records the outcome. It adds the header Warning to stale responses.
func (w *response) setOutcome(outcome result.Outcome) {
	w.outcome = outcome
	if outcome == result.Stale {
		w.Header().Set("Warning", staleWarning)
	}
}

// writeCacheError writes the error response for an error of the cache.
func (w *response) writeCacheError(r *http.Request, notFound oci.ErrorCode, err error) {
	reason := result.Unavailable
	if explained, ok := errors.AsType[*result.Error](err); ok {
		reason = explained.Reason
	}
	switch reason {
	case result.NotFound:
		w.writeError(r, http.StatusNotFound, notFound, err)
	case result.Denied:
		// Not 401, because clients would then send their credentials to the cache.
		w.writeError(r, http.StatusForbidden, oci.CodeDenied, err)
	case result.RateLimited:
		w.writeError(r, http.StatusServiceUnavailable, oci.CodeTooManyRequests, err)
	case result.Busy:
		w.writeError(r, http.StatusServiceUnavailable, oci.CodeUnavailable, err)
	case result.TimedOut:
		w.writeError(r, http.StatusGatewayTimeout, oci.CodeUnavailable, err)
	default:
		w.writeError(r, http.StatusBadGateway, oci.CodeUnavailable, err)
	}
}

// writeError writes an error response. Nothing may have been written before.
func (w *response) writeError(r *http.Request, status int, code oci.ErrorCode, err error) {
	body, marshalErr := json.Marshal(oci.ErrorBody{Errors: []oci.Error{{Code: code, Message: err.Error()}}})
	_ = w.recordErr(errors.Join(err, marshalErr))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return
	}
	if _, err := w.Write(body); err != nil {
		_ = w.recordErr(err)
	}
}
