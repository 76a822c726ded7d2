// SPDX-License-Identifier: Apache-2.0

package pullthrough

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	storageErrors prometheus.Counter
}

// newMetrics registers the metrics unless registerer is nil.
func newMetrics(registerer prometheus.Registerer) *metrics {
	m := &metrics{
		storageErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "registry_cache_storage_errors_total",
			Help: "Objects that could not be stored.",
		}),
	}
	if registerer != nil {
		registerer.MustRegister(m.storageErrors)
	}
	return m
}
