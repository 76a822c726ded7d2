// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests *prometheus.CounterVec
	latency  prometheus.Histogram
	received prometheus.Counter
	waiting  prometheus.Gauge
	busy     prometheus.Counter
}

// newMetrics returns the metrics, registered unless registerer is nil.
func newMetrics(registerer prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "registry_cache_upstream_requests_total",
			Help: "Requests to the upstream by the status of the response; status is \"none\" if there was no response.",
		}, []string{"status"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "registry_cache_upstream_latency_seconds",
			Help:    "Time from the start of a request to the upstream to the header of the response.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 25},
		}),
		received: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "registry_cache_upstream_bytes_total",
			Help: "Bytes of bodies received from the upstream.",
		}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "registry_cache_upstream_waiting_requests",
			Help: "Requests to the upstream that wait because too many are in progress.",
		}),
		busy: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "registry_cache_upstream_unsent_requests_total",
			Help: "Requests to the upstream that were not sent because too many were in progress for too long.",
		}),
	}
	if registerer != nil {
		registerer.MustRegister(m.requests, m.latency, m.received, m.waiting, m.busy)
	}
	return m
}

// observe counts a request. Status 0 means that there was no response.
func (m *metrics) observe(start time.Time, status int) {
	m.latency.Observe(time.Since(start).Seconds())
	label := "none"
	if status != 0 {
		label = strconv.Itoa(status)
	}
	m.requests.WithLabelValues(label).Inc()
}
