// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
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
		complete, suspicious := r.suspicious(client, d, at)
		if suspicious && !complete.Equal(now) {
			t.Errorf("complete at %s, want %s", complete, now)
		}
		return suspicious
	}
	if suspicious("10.0.0.1:1000", layerDigest, now) {
		t.Error("the first request is suspicious")
	}
	r.received("10.0.0.1:1000", layerDigest, 7, 10, now.Add(-time.Hour))
	if suspicious("10.0.0.1:1000", layerDigest, now) {
		t.Error("a request after a part is suspicious")
	}
	r.received("10.0.0.1:3000", layerDigest, 4, 10, now)
	for client, digests := range map[string]digest.Digest{"10.0.0.2:1000": layerDigest, "10.0.0.1:1000": manifestDigest} {
		if suspicious(client, digests, now) {
			t.Errorf("%s, %s: suspicious", client, digests)
		}
	}
	r.received("10.0.0.1:1000", layerDigest, 9, 10, now.Add(time.Second))
	if !suspicious("10.0.0.1:2000", layerDigest, now.Add(time.Minute)) {
		t.Error("the second request of a client is not suspicious")
	}
	if suspicious("10.0.0.1:2000", layerDigest, now.Add(repeatTime)) {
		t.Error("a late request is suspicious")
	}
}

// Responses of a blob whose size is unknown do not show that a client has received all of it.
func TestRepeatsOfUnknownSize(t *testing.T) {
	t.Parallel()
	const client = "10.0.0.1:1000"
	now := time.Unix(1_000_000, 0)
	r := newRepeats()
	for _, sent := range []int64{0, 1, 1 << 40} {
		r.received(client, layerDigest, sent, -1, now)
		if _, suspicious := r.suspicious(client, layerDigest, now); suspicious {
			t.Errorf("a request after %d bytes of a blob of unknown size is suspicious", sent)
		}
	}
	r.received(client, layerDigest, 0, 1<<40, now)
	if _, suspicious := r.suspicious(client, layerDigest, now); !suspicious {
		t.Error("a request after as many bytes as the blob has is not suspicious")
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
	get := func(client, span string) int {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/v2/a/blobs/"+layerDigest.String(), nil)
		r.RemoteAddr = client + ":1000"
		if span != "" {
			r.Header.Set("Range", span)
		}
		rec := httptest.NewRecorder()
		handler.ServeHTTP(rec, r)
		return rec.Code
	}
	for _, step := range []struct {
		client, span string
		verified     int // in all
	}{
		{"10.0.0.1", "", 0}, {"10.0.0.1", "bytes=2-", 0}, {"10.0.0.1", "", 1}, {"10.0.0.1", "", 2},
		// A client that resumes, and one that reads parts.
		{"10.0.0.2", "bytes=0-2", 2}, {"10.0.0.2", "bytes=3-", 2}, {"10.0.0.2", "", 3},
		{"10.0.0.3", "bytes=0-4", 3}, {"10.0.0.3", "bytes=5-9", 3}, {"10.0.0.3", "bytes=5-9", 3}, {"10.0.0.3", "bytes=0-4", 4},
		{"10.0.0.4", "bytes=-9", 4}, {"10.0.0.4", "bytes=0-0", 4}, {"10.0.0.4", "bytes=-9", 4}, {"10.0.0.4", "bytes=0-", 5},
	} {
		get(step.client, step.span)
		if len(cache.verified) != step.verified {
			t.Errorf("%s, range %q: %d verifications, want %d", step.client, step.span, len(cache.verified), step.verified)
		}
	}
	if cache.served != 15 {
		t.Errorf("%d responses, want 15", cache.served)
	}
	cache.verifyErr = &result.Error{Reason: result.Busy, Err: errors.New("being verified")}
	for _, test := range []struct {
		client, span string
		status       int
	}{
		// The client pulls from the upstream while the content may be corrupt.
		{"10.0.0.1", "", http.StatusServiceUnavailable},
		{"10.0.0.1", "", http.StatusServiceUnavailable},
		{"10.0.0.2", "bytes=0-", http.StatusServiceUnavailable},
		// A lazy snapshotter would report the error to a container.
		{"10.0.0.3", "bytes=0-4", http.StatusPartialContent},
	} {
		if status := get(test.client, test.span); status != test.status {
			t.Errorf("%s, range %q during a long verification: status %d, want %d", test.client, test.span, status, test.status)
		}
	}
}

// A client that reads parts waits a short time for a verification. It gets intact content with a short delay only, and a long
// verification does not block a container that reads its files. Another client waits for the result.
func TestWaitForVerification(t *testing.T) {
	t.Parallel()
	const long = 2 * time.Second
	busy := &result.Error{Reason: result.Busy, Err: errors.New("being verified")}
	for _, test := range []struct {
		name, span   string
		verification time.Duration
		result       error
		status       int
		took         time.Duration
	}{
		{"part, short", "bytes=0-4", 30 * time.Millisecond, nil, http.StatusPartialContent, 30 * time.Millisecond},
		{"part, short, with an error", "bytes=0-4", 30 * time.Millisecond, busy, http.StatusPartialContent, 30 * time.Millisecond},
		{"part, long", "bytes=0-4", long, busy, http.StatusPartialContent, partVerifyTime},
		{"later part", "bytes=5-9", long, busy, http.StatusPartialContent, 0},
		{"whole blob, short", "", 30 * time.Millisecond, nil, http.StatusOK, 30 * time.Millisecond},
		{"whole blob, long", "", long, busy, http.StatusServiceUnavailable, long},
		{"whole blob, longer than for a part, without an error", "", long, nil, http.StatusOK, long},
		{"resumed from the first byte, long", "bytes=0-", long, busy, http.StatusServiceUnavailable, long},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cache := &fakeCache{verifyTime: test.verification, verifyErr: test.result, blob: func() blobs.Blob {
					return &hitBlob{memory{strings.NewReader(layer)}, hitOf{missOf(len(layer))}}
				}}
				handler := New("docker.io", cache, Options{})
				get := func(span string) (status int, took time.Duration) {
					r := httptest.NewRequestWithContext(t.Context(), "GET", "/v2/a/blobs/"+layerDigest.String(), nil)
					r.Header.Set("Range", span)
					rec := httptest.NewRecorder()
					began := time.Now()
					handler.ServeHTTP(rec, r)
					return rec.Code, time.Since(began)
				}
				if status, took := get(""); status != http.StatusOK || took > 0 {
					t.Fatalf("the first request: status %d after %s", status, took)
				}
				if status, took := get(test.span); status != test.status || took != test.took {
					t.Errorf("status %d after %s, want %d after %s", status, took, test.status, test.took)
				}
			})
		})
	}
}

// A lazy snapshotter reads the same parts again and again. That causes one verification, which covers all of them until the
// client has received as many bytes as the blob has once more.
func TestVerificationsOfALazySnapshotter(t *testing.T) {
	t.Parallel()
	cache := &fakeCache{blob: func() blobs.Blob {
		return &hitBlob{memory{strings.NewReader(layer)}, hitOf{missOf(len(layer))}}
	}}
	handler := New("docker.io", cache, Options{})
	for range 10 * len(layer) {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/v2/a/blobs/"+layerDigest.String(), nil)
		r.Header.Set("Range", "bytes=0-0")
		handler.ServeHTTP(httptest.NewRecorder(), r)
	}
	slices.SortFunc(cache.since, time.Time.Compare)
	if needed := len(slices.Compact(cache.since)); needed > 10 {
		t.Errorf("%d verifications of %d bytes for %d bytes", needed, len(layer), 10*len(layer))
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
