// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/registry-cache/extension/pkg/oci"
)

// serveContent is http.ServeContent with the errors of this protocol, for at most one range.
func serveContent(w *recorder, r *http.Request, content io.ReadSeeker) {
	out := &contentWriter{recorder: w, request: r}
	if strings.Contains(r.Header.Get("Range"), ",") {
		// RFC 9110, section 14.2, lets a server ignore ranges, and nobody pulls with several.
		r = r.Clone(r.Context())
		r.Header.Del("Range")
	}
	http.ServeContent(out, r, "", time.Time{}, content)
}

// contentWriter replaces what http.ServeContent has to say where it cannot serve the content.
type contentWriter struct {
	*recorder
	request *http.Request
	failed  bool
}

// WriteHeader implements http.ResponseWriter.
func (w *contentWriter) WriteHeader(status int) {
	if status == http.StatusPartialContent {
		// The last 0 bytes are no range, but the http package sends one that ends before it begins.
		var first, last, size int64
		_, err := fmt.Sscanf(w.Header().Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &size)
		if err == nil && first > last {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
			status = http.StatusRequestedRangeNotSatisfiable
		}
	}
	if status < http.StatusBadRequest {
		w.recorder.WriteHeader(status)
		return
	}
	w.failed = true
	w.Header().Del("Docker-Content-Digest")
	if status == http.StatusRequestedRangeNotSatisfiable {
		w.fail(w.request, status, oci.CodeRangeInvalid, fmt.Errorf("the range %q cannot be read, or lies outside of the content", w.request.Header.Get("Range")))
		return
	}
	w.fail(w.request, status, oci.CodeUnknown, errors.New(http.StatusText(status)))
}

// Write implements http.ResponseWriter.
func (w *contentWriter) Write(p []byte) (int, error) {
	if w.failed {
		return len(p), nil
	}
	return w.recorder.Write(p)
}
