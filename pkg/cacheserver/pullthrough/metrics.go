// SPDX-License-Identifier: Apache-2.0

package pullthrough

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	fetches       prometheus.Gauge
	followers     prometheus.Counter
	storageErrors prometheus.Counter
}

// newMetrics registers the metrics unless registerer is nil.
func newMetrics(registerer prometheus.Registerer) *metrics {
	m := &metrics{
		fetches: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "registry_cache_fetches_in_flight",
			Help: "Blobs that are being fetched from the upstream.",
		}),
		followers: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "registry_cache_followers_total",
			Help: "Requests for blobs that were served from a fetch that another request had begun.",
		}),
		storageErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "registry_cache_storage_errors_total",
			Help: "Objects that could not be stored.",
		}),
	}
	if registerer != nil {
		registerer.MustRegister(m.fetches, m.followers, m.storageErrors)
	}
	return m
}
