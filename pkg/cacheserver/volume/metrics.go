// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	failures *prometheus.CounterVec
}

// newMetrics registers the metrics. current returns the state of the volume.
func newMetrics(registerer prometheus.Registerer, current func() State) *metrics {
	factory := promauto.With(registerer)
	m := &metrics{failures: factory.NewCounterVec(prometheus.CounterOpts{
		Name: "registry_cache_volume_failures_total",
		Help: "File system calls that failed because of the volume, by the state of the volume that they indicate.",
	}, []string{"state"})}
	for _, state := range States() {
		factory.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "registry_cache_volume_state",
			Help:        "1 for the current state of the volume, 0 for the others.",
			ConstLabels: prometheus.Labels{"state": string(state)},
		}, func() float64 {
			if current() == state {
				return 1
			}
			return 0
		})
		if state != OK {
			m.failures.WithLabelValues(string(state))
		}
	}
	return m
}
