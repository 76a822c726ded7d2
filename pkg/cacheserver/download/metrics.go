// SPDX-License-Identifier: Apache-2.0

package download

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	downloads   prometheus.Gauge
	followers   prometheus.Counter
	connections *prometheus.CounterVec
}

// newMetrics registers the metrics unless registerer is nil.
func newMetrics(registerer prometheus.Registerer) *metrics {
	m := &metrics{
		downloads: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "registry_cache_fetches_in_flight",
			Help: "Blobs that are being downloaded from the upstream.",
		}),
		followers: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "registry_cache_followers_total",
			Help: "Requests for blobs that joined the download of another request.",
		}),
		connections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "registry_cache_blob_connections_total",
			Help: "Requests for blobs to the upstream by reason: needed (by a reader), complete (the rest of a blob), replace (a slow connection), speedup (additional connection).",
		}, []string{"reason"}),
	}
	for _, why := range []reason{needed, remaining, replacing, speeding} {
		m.connections.WithLabelValues(string(why))
	}
	if registerer != nil {
		registerer.MustRegister(m.downloads, m.followers, m.connections)
	}
	return m
}
