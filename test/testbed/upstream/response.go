// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// response records an answer in the request log and sends it as fast as the shaper admits, without the body where the
// request is a HEAD. It is the place where an answer can be changed on its way out.
type response struct {
	http.ResponseWriter
	request *http.Request
	log     *requestLog
	entry   *Request
	shaper  *shaper
	fault   *Fault // of the body, or nil
	passed  int64  // bytes of the body so far
	sent    bool   // the header
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *response) WriteHeader(status int) {
	if !w.sent && status >= http.StatusOK {
		w.sent = true
		if status != http.StatusOK && status != http.StatusPartialContent {
			w.fault = nil
		}
		digest := w.Header().Get("Docker-Content-Digest")
		w.log.update(w.entry, func(q *Request) { q.Status, q.Digest = status, digest })
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(p []byte) (written int, err error) {
	if !w.sent {
		w.WriteHeader(http.StatusOK)
	}
	if w.request.Method == http.MethodHead {
		return len(p), nil
	}
	for len(p) > 0 {
		chunk := p[:w.shaper.chunk(len(p))]
		if w.fault != nil {
			chunk = w.spoil(chunk)
		}
		n := len(chunk)
		if err := w.shaper.admit(w.request.Context(), n); err != nil {
			return written, err
		}
		w.log.update(w.entry, func(q *Request) { q.Bytes += int64(n) })
		sent, err := w.ResponseWriter.Write(chunk)
		written += sent
		w.passed += int64(sent)
		if err != nil {
			w.log.update(w.entry, func(q *Request) { q.Bytes -= int64(n - sent) })
			return written, err
		}
		p = p[n:]
	}
	return written, nil
}

// spoil returns what is sent of the chunk next, as the fault wants it. It panics where the fault ends the answer.
func (w *response) spoil(chunk []byte) []byte {
	right := w.fault.AfterBytes - w.passed
	switch {
	case right > 0:
		return chunk[:min(int64(len(chunk)), right)]
	case w.fault.Action != Corrupt:
		_ = http.NewResponseController(w).Flush() // an error means that the client left
		w.fault.instead(w, w.request)
	case right == 0:
		return []byte{chunk[0] ^ 1}
	}
	return chunk
}

// captured is an answer in memory. The manifest store writes while it holds a lock: a client that reads slowly must
// not keep that lock.
type captured struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (c *captured) Header() http.Header { return c.header }

func (c *captured) WriteHeader(status int) {
	if c.status == 0 {
		c.status = status
	}
}

func (c *captured) Write(p []byte) (int, error) {
	c.WriteHeader(http.StatusOK)
	return c.body.Write(p)
}

// capture serves r with h.
func capture(h http.Handler, r *http.Request) *captured {
	c := &captured{header: http.Header{}}
	h.ServeHTTP(c, r)
	c.WriteHeader(http.StatusOK)
	return c
}

// send copies the answer to w.
func (c *captured) send(w http.ResponseWriter) {
	for name, values := range c.header {
		w.Header()[name] = values
	}
	if c.status >= http.StatusBadRequest || w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(c.status)
	_, _ = io.Copy(w, &c.body) // an error means that the client left; the request log has the bytes it got
}

// writeError answers with an error body of the OCI distribution specification.
func writeError(w http.ResponseWriter, status int, code, format string, args ...any) {
	type entry struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	body, err := json.Marshal(map[string][]entry{"errors": {{Code: code, Message: fmt.Sprintf(format, args...)}}})
	if err != nil {
		panic(fmt.Sprintf("encoding two strings: %v", err))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // as in send
}
