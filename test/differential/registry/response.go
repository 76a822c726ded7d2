// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/registry-cache/extension/test/differential/scenario"
)

// Request is a request that has ended, with its response.
type Request struct {
	// Host is "registry", "target" (the host of redirects) or "token".
	Host string
	// TLS indicates https.
	TLS bool
	// Round is 0 or 1.
	Round  int
	Method string
	// Path is without the query.
	Path string
	// RequestHeader and Header are the headers of request and response.
	RequestHeader, Header http.Header
	// LocalAddress is the IP address of the server.
	LocalAddress string
	// Status is 0 if no response was sent.
	Status int
	// Bytes is the number of bytes of the body.
	Bytes int
	// Broken indicates that the registry closed or reset the connection before the end of the body.
	Broken bool
	// HeaderAfter and EndAfter are the times from the start of the request to the response headers and to the end.
	HeaderAfter, EndAfter time.Duration
}

// response is a http.ResponseWriter that records a Request.
type response struct {
	http.ResponseWriter
	r      *Registry
	q      *http.Request
	start  time.Time
	record Request
}

func newResponse(r *Registry, w http.ResponseWriter, q *http.Request, host string) *response {
	local := ""
	if address, ok := q.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok {
		local = address.IP.String()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return &response{ResponseWriter: w, r: r, q: q, start: time.Now(), record: Request{
		Host: host, TLS: q.TLS != nil, Round: r.round, Method: q.Method, Path: q.URL.Path, RequestHeader: q.Header, LocalAddress: local,
	}}
}

// WriteHeader implements http.ResponseWriter.
func (w *response) WriteHeader(status int) {
	w.record.Status, w.record.HeaderAfter, w.record.Header = status, time.Since(w.start), w.Header().Clone()
	w.ResponseWriter.WriteHeader(status)
}

// Write implements io.Writer.
func (w *response) Write(p []byte) (int, error) {
	if w.record.Status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	n, err := w.ResponseWriter.Write(p)
	w.record.Bytes += n
	return n, err
}

// end adds the record to the log of the registry.
func (w *response) end() {
	w.record.EndAfter = time.Since(w.start)
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	w.r.requests = append(w.r.requests, w.record)
}

// sendError sends an error document of the OCI distribution specification.
func (w *response) sendError(status int) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if w.q.Method != http.MethodHead {
		fmt.Fprintf(w, `{"errors":[{"code":"UNKNOWN","message":"status %d"}]}`, status)
	}
}

// tricklingBytes is the size of an error document with the quirk "trickling-error". At one byte per second it is longer
// than any time limit of a client.
const tricklingBytes = 600

// sendFault sends the response of the quirk "status".
func (w *response) sendFault(ctx context.Context, status int) {
	if seconds, ok := w.r.s.Number("retry-after"); ok {
		w.Header().Set("Retry-After", strconv.Itoa(seconds))
	}
	switch {
	case w.q.Method == http.MethodHead:
		w.sendError(status)
	case w.r.s.Has("html-error"):
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(status)
		fmt.Fprintf(w, "<html><body><h1>%d</h1></body></html>\n", status)
	case w.r.s.Has("trickling-error"):
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(tricklingBytes))
		w.WriteHeader(status)
		w.flush()
		for range tricklingBytes {
			if !w.r.sleep(ctx, time.Second) {
				return
			}
			fmt.Fprint(w, " ") // the client may have disconnected
			w.flush()
		}
	default:
		w.sendError(status)
	}
}

// flush sends the buffered bytes. An error means that the client has disconnected, which the next read or write shows.
func (w *response) flush() { _ = http.NewResponseController(w.ResponseWriter).Flush() }

// sendContent sends a manifest or blob, or a range of a blob.
func (w *response) sendContent(ctx context.Context, c content, target scenario.Target) {
	s := w.r.s
	w.contentHeaders(c, target)
	body := c.bytes
	encoding := w.encoding(target)
	if encoding != "" {
		encoded, err := encode(encoding, body)
		if err != nil {
			w.sendError(http.StatusInternalServerError)
			return
		}
		body = encoded
		w.Header().Set("Content-Encoding", encoding)
	}
	status := http.StatusOK
	if value := w.q.Header.Get("Range"); value != "" && w.q.Method == http.MethodGet && encoding == "" && !s.Has("ranges-ignored") {
		start, end, ok := parseRange(value, len(body))
		if !ok || s.Has("ranges-416") {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", len(body)))
			w.sendError(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		wrong := 0
		if s.Has("ranges-wrong") {
			wrong = 1
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start+wrong, end-1, len(body)))
		body, status = body[start:end], http.StatusPartialContent
	}
	switch {
	case s.HasAt("no-length", target) && (target == scenario.Head || target == scenario.BlobHead):
	case target == scenario.Head || target == scenario.BlobHead:
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	case s.HasAt("chunked", target):
	case s.HasAt("until-close", target):
		w.Header().Set("Transfer-Encoding", "identity") // net/http then closes the connection after the body
	default:
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(status)
	if w.q.Method != http.MethodHead {
		w.flush()
		w.sendBody(ctx, body, target)
	}
}

// contentHeaders sets the headers that describe the content.
func (w *response) contentHeaders(c content, target scenario.Target) {
	s, h := w.r.s, w.Header()
	isManifest := target == scenario.Head || target == scenario.Manifest
	switch {
	case s.HasAt("charset", target):
		h.Set("Content-Type", c.mediaType+"; charset=utf-8")
	case !isManifest, s.HasAt("octet-stream", target):
		h.Set("Content-Type", "application/octet-stream")
	case s.HasAt("no-content-type", target):
		h["Content-Type"] = nil // otherwise net/http guesses it
	default:
		h.Set("Content-Type", c.mediaType)
	}
	switch {
	case s.HasAt("no-digest", target):
	case s.HasAt("garbled-digest", target):
		h.Set("Docker-Content-Digest", "sha256:none")
	default:
		h.Set("Docker-Content-Digest", c.digest.String())
	}
	if !s.Has("no-accept-ranges") {
		h.Set("Accept-Ranges", "bytes")
	}
	h.Set("ETag", strconv.Quote(c.digest.String()))
}

// encoding returns the Content-Encoding of the response, empty for none.
func (w *response) encoding(target scenario.Target) string {
	var encoding string
	switch {
	case w.r.s.HasAt("gzip", target):
		encoding = "gzip"
	case (target == scenario.Manifest || target == scenario.Blob) && w.r.s.HasAt("zstd", target):
		encoding = "zstd"
	default:
		return ""
	}
	// RFC 9110, section 12.5.3: without the header, any encoding is acceptable.
	accepted, isSet := w.q.Header["Accept-Encoding"]
	if isSet && !w.r.s.Has("forced-encoding") && !strings.Contains(strings.Join(accepted, ","), encoding) {
		return ""
	}
	return encoding
}

func encode(encoding string, b []byte) ([]byte, error) {
	if encoding == "zstd" {
		encoder, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return encoder.EncodeAll(b, nil), encoder.Close()
	}
	var buffer bytes.Buffer
	encoder := gzip.NewWriter(&buffer)
	if _, err := encoder.Write(b); err != nil {
		return nil, err
	}
	if err := encoder.Close(); err != nil {
		return nil, err
	}
	return buffer.Bytes(), nil
}

// parseRange returns the bytes [start, end) of the header Range with one range. ok is false if it is not satisfiable.
func parseRange(header string, size int) (start, end int, ok bool) {
	value, ok := strings.CutPrefix(header, "bytes=")
	first, last, isRange := strings.Cut(value, "-")
	if !ok || !isRange {
		return 0, 0, false
	}
	if first == "" { // the last bytes
		n, err := strconv.Atoi(last)
		return max(0, size-n), size, err == nil && n > 0 && size > 0
	}
	start, err := strconv.Atoi(first)
	if err != nil || start >= size {
		return 0, 0, false
	}
	if last == "" {
		return start, size, true
	}
	n, err := strconv.Atoi(last)
	return start, min(n+1, size), err == nil && n >= start
}

// interval is the time between two writes of a body with a limited rate.
const interval = 20 * time.Millisecond

// sendBody sends the body with the rate, pause or interruption of the quirks.
func (w *response) sendBody(ctx context.Context, body []byte, target scenario.Target) {
	s := w.r.s
	n := w.r.increment("content " + string(target) + " " + w.q.URL.Path)
	limit, reset := len(body), false
	for _, name := range []string{"cut", "reset"} {
		if bytes, ok := s.NumberAt(name, target); ok && bytes < len(body) && w.r.faulty(name, target, w.q.URL.Path) {
			limit, reset, w.record.Broken = bytes, name == "reset", true
		}
	}
	rate, limited := s.NumberAt("rate", target)
	if slow, ok := s.NumberAt("slow-first", target); ok && n == 1 {
		rate, limited = slow, true
	}
	half := limit / 2
	w.send(ctx, body[:half], rate, limited)
	if _, ok := s.NumberAt("pause-body", target); ok {
		w.flush()
		w.r.pause(w.q, "pause-body", target)
	}
	w.send(ctx, body[half:limit], rate, limited)
	if w.record.Broken {
		w.disconnect(reset)
	}
}

func (w *response) send(ctx context.Context, body []byte, rate int, limited bool) {
	step := len(body)
	if limited {
		step = max(1, int(int64(rate)*int64(interval)/int64(time.Second)))
	}
	for len(body) > 0 {
		n := min(step, len(body))
		if _, err := w.Write(body[:n]); err != nil {
			return
		}
		body = body[n:]
		if limited && len(body) > 0 {
			w.flush()
			if !w.r.sleep(ctx, interval) {
				return
			}
		}
	}
}

// disconnect closes the connection, without sending the end of the body. With reset, the client receives a TCP reset.
func (w *response) disconnect(reset bool) {
	w.flush()
	conn, _, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	transport := conn
	if encrypted, ok := conn.(*tls.Conn); ok {
		transport = encrypted.NetConn()
	}
	if tcp, ok := transport.(*net.TCPConn); ok && reset {
		// A reset discards the bytes in the buffers, so the client gets time to read them.
		w.r.sleep(w.r.ctx, interval)
		_ = tcp.SetLinger(0) // fails only for a connection that is already closed
	}
	transport.Close()
}
