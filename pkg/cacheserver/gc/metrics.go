// SPDX-License-Identifier: Apache-2.0

package gc

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

// measurements are the functions that compute the gauges when these are scraped.
type measurements struct {
	usage  func() (evict.Usage, error)
	limits func() evict.Limits
	// oldestAge is the time since the last use of the least recently used object.
	oldestAge func() time.Duration
}

// newMetrics registers the metrics, unless registerer is nil.
func newMetrics(registerer prometheus.Registerer, measure measurements) *metrics {
	m := &metrics{
		evictions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "registry_cache_evictions_total",
			Help: "Deleted objects by reason.",
		}, []string{"reason"}),
		evictedBytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "registry_cache_evicted_bytes_total",
			Help: "Size of the deleted objects by reason.",
		}, []string{"reason"}),
	}
	for _, reason := range evict.Reasons() {
		m.evictions.WithLabelValues(string(reason))
		m.evictedBytes.WithLabelValues(string(reason))
	}
	if registerer == nil {
		return m
	}
	gauge := func(name, help string, value func(evict.Usage) int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			u, err := measure.usage()
			if err != nil {
				return math.NaN()
			}
			return float64(value(u))
		})
	}
	bytes := func(u evict.Usage) evict.Amount { return measure.limits().Effective(u) }
	registerer.MustRegister(
		m.evictions, m.evictedBytes,
		gauge("registry_cache_volume_used_bytes", "Used bytes of the volume: of its file system, or of storage.size.",
			func(u evict.Usage) int64 { return bytes(u).Used }),
		gauge("registry_cache_volume_limit_bytes", "Usable bytes of the volume: of its file system, or storage.size.",
			func(u evict.Usage) int64 { return bytes(u).Limit }),
		gauge("registry_cache_volume_used_inodes", "Used inodes of the file system.",
			func(u evict.Usage) int64 { return u.Inodes.Used }),
		gauge("registry_cache_volume_limit_inodes", "Inodes of the file system, 0 if it creates them on demand.",
			func(u evict.Usage) int64 { return u.Inodes.Limit }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "registry_cache_oldest_object_age_seconds",
			Help: "Time since the last use of the least recently used object, 0 without objects.",
		}, func() float64 { return measure.oldestAge().Seconds() }),
	)
	return m
}

func (m *metrics) countRemoval(v evict.Victim) {
	m.evictions.WithLabelValues(string(v.Reason)).Inc()
	m.evictedBytes.WithLabelValues(string(v.Reason)).Add(float64(v.Size))
}
