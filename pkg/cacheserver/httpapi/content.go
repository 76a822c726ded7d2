// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/registry-cache/extension/pkg/oci"
)

// serveContent is http.ServeContent with the error bodies of the OCI distribution API. A request for several ranges gets the
// whole content.
func serveContent(w *response, r *http.Request, content io.ReadSeeker) {
	out := &contentWriter{response: w, request: r}
	http.ServeContent(out, withRange(r, w.Header().Get("ETag")), "", time.Time{}, content)
}

// withRange returns the request for content with the ETag, with a normalized header Range: see oneRange. A range for other
// content is ignored (RFC 9110, section 13.1.5).
func withRange(r *http.Request, etag string) *http.Request {
	header := oneRange(r.Header.Get("Range"))
	if condition := r.Header.Get("If-Range"); condition != "" && condition != etag {
		header = ""
	}
	if header == r.Header.Get("Range") {
		return r
	}
	r = r.Clone(r.Context())
	r.Header.Set("Range", header)
	return r
}

// oneRangeGrammar is the header Range with one range of bytes. A list can have empty elements (RFC 9110, section 5.6.1.2).
var oneRangeGrammar = regexp.MustCompile(`^bytes=[ \t,]*([0-9]+-[0-9]*|-[0-9]+)[ \t,]*$`)

// oneRange normalizes the header Range. It returns "" for another unit than bytes, and for a header with several ranges,
// which RFC 9110, section 14.2, allows: no known client pulls several ranges with one request. It returns an invalid header
// for any other header than one range: package http would accept numbers with a sign.
func oneRange(header string) string {
	match := oneRangeGrammar.FindStringSubmatch(header)
	switch {
	case match != nil:
		return "bytes=" + match[1]
	case !strings.HasPrefix(header, "bytes=") || strings.Contains(header, ","):
		return ""
	}
	return "bytes=invalid"
}

// contentWriter replaces the error responses of http.ServeContent.
type contentWriter struct {
	*response
	request *http.Request
	failed  bool
}

// WriteHeader implements http.ResponseWriter.
func (w *contentWriter) WriteHeader(status int) {
	if status == http.StatusPartialContent {
		// For the range "bytes=-0", the http package sends a range that ends before it begins. It is not satisfiable.
		var first, last, size int64
		_, err := fmt.Sscanf(w.Header().Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &size)
		if err == nil && first > last {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
			status = http.StatusRequestedRangeNotSatisfiable
		}
	}
	if status < http.StatusBadRequest {
		w.response.WriteHeader(status)
		return
	}
	w.failed = true
	w.Header().Del("Docker-Content-Digest")
	if status == http.StatusRequestedRangeNotSatisfiable {
		w.writeError(w.request, status, oci.CodeRangeInvalid, fmt.Errorf("the range %q is invalid or outside of the content", w.request.Header.Get("Range")))
		return
	}
	w.writeError(w.request, status, oci.CodeUnknown, errors.New(http.StatusText(status)))
}

// Write implements http.ResponseWriter.
func (w *contentWriter) Write(p []byte) (int, error) {
	if w.failed {
		return len(p), nil
	}
	return w.response.Write(p)
}
