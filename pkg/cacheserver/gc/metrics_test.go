// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

func TestUsageMetrics(t *testing.T) {
	t.Parallel()
	usage := evict.Usage{FileSystem: evict.Amount{Used: 1, Limit: 2}, Inodes: evict.Amount{Used: 3, Limit: 4}}
	unknown := math.NaN()
	for name, tc := range map[string]struct {
		err  error
		want map[string]float64
	}{
		"measured": {nil, map[string]float64{"used_bytes": 1, "limit_bytes": 2, "used_inodes": 3, "limit_inodes": 4}},
		"unavailable volume": {errors.New("unavailable"), map[string]float64{
			"used_bytes": unknown, "limit_bytes": unknown, "used_inodes": unknown, "limit_inodes": unknown,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			registry := prometheus.NewRegistry()
			newMetrics(registry, measurements{
				usage:     func() (evict.Usage, error) { return usage, tc.err },
				limits:    func() evict.Limits { return evict.Limits{} },
				oldestAge: func() time.Duration { return 0 },
			})
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]float64{}
			for _, family := range families {
				for metric := range tc.want {
					if family.GetName() == "registry_cache_volume_"+metric {
						got[metric] = family.GetMetric()[0].GetGauge().GetValue()
					}
				}
			}
			if diff := cmp.Diff(tc.want, got, cmpopts.EquateNaNs()); diff != "" {
				t.Errorf("metrics: -want +got\n%s", diff)
			}
		})
	}
}
