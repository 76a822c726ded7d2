// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/blobs"
	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

func TestRepeats(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_000_000, 0)
	r := newRepeats()
	suspicious := func(client string, d digest.Digest, at time.Time) bool {
		received, suspicious := r.suspicious(client, d, at)
		if suspicious && !received.Equal(now) {
			t.Errorf("received at %s, want %s", received, now)
		}
		return suspicious
	}
	if suspicious("10.0.0.1:1000", layerDigest, now) {
		t.Error("the first request is suspicious")
	}
	r.complete("10.0.0.1:1000", layerDigest, now)
	for client, digests := range map[string]digest.Digest{"10.0.0.2:1000": layerDigest, "10.0.0.1:1000": manifestDigest} {
		if suspicious(client, digests, now) {
			t.Errorf("%s, %s: suspicious", client, digests)
		}
	}
	if !suspicious("10.0.0.1:2000", layerDigest, now.Add(time.Minute)) {
		t.Error("the second request of a client is not suspicious")
	}
	if suspicious("10.0.0.1:2000", layerDigest, now.Add(repeatTime)) {
		t.Error("a late request is suspicious")
	}
}

// hitOf is a stored blob.
type hitOf struct{ missOf }

func (hitOf) Outcome() result.Outcome { return result.Hit }

type hitBlob struct {
	io.ReadSeekCloser
	hitOf
}

func TestRepeatedRequestIsVerified(t *testing.T) {
	t.Parallel()
	cache := &fakeCache{blob: func() blobs.Blob {
		return &hitBlob{memory{strings.NewReader(layer)}, hitOf{missOf(len(layer))}}
	}}
	handler := New("docker.io", cache, Options{})
	for _, step := range []struct {
		span     string
		verified int // in all
	}{{"", 0}, {"bytes=2-", 0}, {"", 1}, {"", 2}} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/v2/a/blobs/"+layerDigest.String(), nil)
		if step.span != "" {
			r.Header.Set("Range", step.span)
		}
		rec := httptest.NewRecorder()
		handler.ServeHTTP(rec, r)
		if len(cache.verified) != step.verified {
			t.Errorf("range %q: %d verifications, want %d", step.span, len(cache.verified), step.verified)
		}
	}
	if cache.served != 4 {
		t.Errorf("%d responses, want 4", cache.served)
	}
	// The client pulls from the upstream while the content may be corrupt.
	cache.verifyErr = &result.Error{Reason: result.Busy, Err: errors.New("being verified")}
	for range 2 {
		rec := httptest.NewRecorder()
		handler.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", "/v2/a/blobs/"+layerDigest.String(), nil))
		if rec.Code != http.StatusServiceUnavailable {
			t.Errorf("during a long verification: status %d", rec.Code)
		}
	}
}

func TestReadError(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name       string
		sent, want int64
		err        error
		file       bool
	}{
		{"all was sent", 10, 10, nil, false},
		{"shorter file", 5, 10, nil, true},
		{"client disconnected", 5, 10, &net.OpError{Op: "readfrom", Err: os.NewSyscallError("sendfile", syscall.EPIPE)}, false},
		{"client is slow", 5, 10, &net.OpError{Op: "write", Err: os.ErrDeadlineExceeded}, false},
		{"error of the volume", 5, 10, &net.OpError{Op: "readfrom", Err: os.NewSyscallError("sendfile", syscall.EIO)}, true},
		{"error of the volume with TLS", 5, 10, &os.PathError{Op: "read", Err: syscall.EIO}, true},
		{"stale handle", 5, 10, &net.OpError{Op: "readfrom", Err: os.NewSyscallError("sendfile", syscall.ESTALE)}, true},
		{"stale handle with TLS", 5, 10, &os.PathError{Op: "read", Err: syscall.ESTALE}, true},
		{"corrupt metadata", 5, 10, &net.OpError{Op: "readfrom", Err: os.NewSyscallError("sendfile", syscall.EBADMSG)}, true},
		{"client does not respond", 5, 10, &net.OpError{Op: "readfrom", Err: os.NewSyscallError("sendfile", syscall.ETIMEDOUT)}, false},
		{"volume does not respond", 5, 10, &os.PathError{Op: "read", Err: volume.ErrHung}, false},
		{"other error", 5, 10, errors.New("other"), false},
	} {
		if got := readError(test.sent, test.want, test.err); (got != nil) != test.file {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}
