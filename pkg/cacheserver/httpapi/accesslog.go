// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/registry-cache/extension/pkg/cacheserver/result"
)

// outcomeError is the outcome of error responses and of incomplete ones.
const outcomeError = "error"

type metrics struct {
	requests *prometheus.CounterVec
	sent     prometheus.Counter
	saved    prometheus.Counter
}

// newMetrics registers the metrics unless registerer is nil.
func newMetrics(registerer prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "registry_cache_requests_total",
			Help: "Requests by kind (manifest, blob, tags, referrers, other) and outcome (hit, miss, stale, pass-through, error).",
		}, []string{"kind", "outcome"}),
		sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "registry_cache_client_bytes_total",
			Help: "Bytes of bodies sent to clients.",
		}),
		saved: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "registry_cache_saved_bytes_total",
			Help: "Bytes of bodies sent to clients that were not transferred from the upstream for this request: all of hits and stale answers, and the bytes from the download of another request.",
		}),
	}
	if registerer != nil {
		registerer.MustRegister(m.requests, m.sent, m.saved)
	}
	return m
}

// saved returns how many of the sent bytes were not transferred from the upstream for this request.
func (w *response) saved() int64 {
	switch {
	case w.status >= http.StatusBadRequest:
		return 0
	case w.outcome == result.Hit, w.outcome == result.Stale:
		return w.sent
	}
	// A client that disconnects has not received all bytes that were read for it.
	return min(w.shared, w.sent)
}

// recordResponse counts and logs a response.
func (h *Handler) recordResponse(r *http.Request, kind string, w *response, took time.Duration) {
	outcome := string(w.outcome)
	if w.err != nil || w.status >= http.StatusBadRequest {
		outcome = outcomeError
	}
	attributes := []slog.Attr{
		slog.String("method", r.Method),
		slog.String("path", r.URL.Path),
		slog.Int("status", w.status),
		slog.String("outcome", outcome),
		slog.Int64("bytes", w.sent),
		slog.Float64("seconds", took.Seconds()),
		slog.String("client", r.RemoteAddr),
	}
	if w.err != nil {
		attributes = append(attributes, slog.Any("error", w.err))
	}
	level := slog.LevelInfo
	if kind == kindPing {
		// Each node sends a probe every few seconds.
		level = slog.LevelDebug
	} else {
		h.metrics.requests.WithLabelValues(kind, outcome).Inc()
	}
	h.metrics.sent.Add(float64(w.sent))
	h.metrics.saved.Add(float64(w.saved()))
	h.log.LogAttrs(r.Context(), level, "Served request", attributes...)
}
