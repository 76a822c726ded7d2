// SPDX-License-Identifier: Apache-2.0

package store

import (
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

type metrics struct {
	evictions    *prometheus.CounterVec
	evictedBytes *prometheus.CounterVec
}

// newMetrics registers the metrics unless registerer is nil. The gauges are measured when they are asked for.
func newMetrics(registerer prometheus.Registerer, s *Store) *metrics {
	m := &metrics{
		evictions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "registry_cache_evictions_total",
			Help: "Objects that were deleted, by reason.",
		}, []string{"reason"}),
		evictedBytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "registry_cache_evicted_bytes_total",
			Help: "Size of the objects that were deleted, by reason.",
		}, []string{"reason"}),
	}
	for _, reason := range evict.Reasons() {
		m.evictions.WithLabelValues(string(reason))
		m.evictedBytes.WithLabelValues(string(reason))
	}
	if registerer == nil {
		return m
	}
	measure := func(value func(evict.Volume) int64) func() float64 {
		return func() float64 {
			v, err := s.volume()
			if err != nil {
				return math.NaN()
			}
			return float64(value(v))
		}
	}
	registerer.MustRegister(
		m.evictions, m.evictedBytes,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "registry_cache_volume_used_bytes",
			Help: "Space of the volume that is used, by anything.",
		}, measure(func(v evict.Volume) int64 { return v.Used })),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "registry_cache_volume_limit_bytes",
			Help: "Space of the volume, used or not.",
		}, measure(func(v evict.Volume) int64 { return v.Limit })),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "registry_cache_oldest_object_age_seconds",
			Help: "Time since the last use of the object that was not used for longest, 0 without objects.",
		}, func() float64 {
			oldest, ok := s.index.Oldest()
			if !ok {
				return 0
			}
			return max(time.Since(oldest).Seconds(), 0)
		}),
	)
	return m
}
