// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

func TestTransfersAreBounded(t *testing.T) {
	t.Parallel()
	const limit, clients = 3, 20
	r := serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, layer) })
	metrics := prometheus.NewRegistry()
	c := r.client(t, upstream.Options{MaxTransfers: limit, QueueTimeout: time.Minute, Registerer: metrics})
	var held []*upstream.Blob
	for range limit {
		blob, err := c.Blob(t.Context(), repository, layerDigest, upstream.Range{})
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, blob)
	}
	var work sync.WaitGroup
	for range clients {
		work.Go(func() {
			if got := readBlob(t, c, 0); got != layer {
				t.Errorf("got %q", got)
			}
		})
	}
	awaitMetric(t, metrics, fmt.Sprintf("registry_cache_upstream_waiting_requests %d", clients))
	if got := r.seen(); len(got) != limit {
		t.Errorf("%d requests were sent, want %d", len(got), limit)
	}
	// Other requests do not wait for transfers.
	if _, err := c.HeadBlob(t.Context(), repository, layerDigest); err != nil {
		t.Error(err)
	}
	for _, blob := range held {
		if err := blob.Close(); err != nil {
			t.Error(err)
		}
	}
	work.Wait()
	if got := len(r.seen()); got != limit+clients+1 {
		t.Errorf("%d requests in the end, want %d", got, limit+clients+1)
	}
	wantMetrics(t, metrics, "registry_cache_upstream_waiting_requests 0", "registry_cache_upstream_unsent_requests_total 0")
}

func TestWaitingIsBounded(t *testing.T) {
	t.Parallel()
	r := serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, layer) })
	metrics := prometheus.NewRegistry()
	c := r.client(t, upstream.Options{MaxTransfers: 1, QueueTimeout: time.Millisecond, Registerer: metrics})
	first, err := c.Blob(t.Context(), repository, layerDigest, upstream.Range{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Blob(t.Context(), repository, manifestDigest, upstream.Range{})
	if failed, ok := errors.AsType[*upstream.Error](err); !ok || !failed.Busy() || !failed.Temporary() || failed.Timeout() {
		t.Errorf("%v, want one that says busy", err)
	}
	wantMetrics(t, metrics, "registry_cache_upstream_unsent_requests_total 1")
	gone, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the client left")
	cancel(cause)
	if _, err = c.Blob(gone, repository, manifestDigest, upstream.Range{}); !errors.Is(err, cause) {
		t.Errorf("%v, want the cause", err)
	}
	for range 2 { // the second Close releases no slot
		if err := first.Close(); err != nil && !errors.Is(err, http.ErrBodyReadAfterClose) {
			t.Error(err)
		}
	}
	if got := readBlob(t, c, 0); got != layer {
		t.Errorf("after the turn was given back: %q", got)
	}
}

// Each result of a request releases its slot.
func TestTurnsAreGivenBack(t *testing.T) {
	t.Parallel()
	answers := []http.HandlerFunc{
		func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) },
		func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) },
		func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 7-8/9")
			w.WriteHeader(http.StatusPartialContent)
		},
		func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "short")
		},
	}
	for i, answer := range answers {
		var mu sync.Mutex
		broken := true
		r := serve(t, func(w http.ResponseWriter, req *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			if broken {
				answer(w, req)
				return
			}
			io.WriteString(w, layer)
		})
		c := r.client(t, upstream.Options{MaxTransfers: 1, MaxRequests: 1, QueueTimeout: time.Minute})
		for range 2 {
			blob, err := c.Blob(t.Context(), repository, layerDigest, upstream.Range{Offset: 4})
			if err == nil {
				_, err = io.ReadAll(blob)
				if err := blob.Close(); err != nil {
					t.Error(err)
				}
			}
			if err == nil {
				t.Errorf("answer %d is fine", i)
			}
			if _, err := c.Manifest(t.Context(), repository, byDigest); err == nil {
				t.Errorf("answer %d is a fine manifest", i)
			}
		}
		mu.Lock()
		broken = false
		mu.Unlock()
		if got := readBlob(t, c, 0); got != layer {
			t.Errorf("after answer %d: %q", i, got)
		}
	}
}

// awaitMetric returns when the metrics have the line.
func awaitMetric(t *testing.T, gatherer prometheus.Gatherer, line string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		rec := httptest.NewRecorder()
		promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequestWithContext(ctx, "GET", "/metrics", nil))
		if strings.Contains(rec.Body.String(), line+"\n") {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("no %s within 30 s", line)
		case <-tick.C:
		}
	}
}
