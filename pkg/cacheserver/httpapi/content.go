package httpapi

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/registry-cache/extension/pkg/oci"
)

// serveContent is http.ServeContent with the errors of this protocol.
func serveContent(w *recorder, r *http.Request, content io.ReadSeeker) {
	http.ServeContent(&contentWriter{recorder: w, request: r}, r, "", time.Time{}, content)
}

// contentWriter replaces what http.ServeContent has to say where it cannot serve the content.
type contentWriter struct {
	*recorder
	request *http.Request
	failed  bool
}

// WriteHeader implements http.ResponseWriter.
func (w *contentWriter) WriteHeader(status int) {
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
