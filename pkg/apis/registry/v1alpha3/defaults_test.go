// SPDX-License-Identifier: Apache-2.0

package v1alpha3

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What is left out has its default at every depth, and what is given stays.
func TestSetDefaults(t *testing.T) {
	t.Parallel()
	all := func(remoteURL, size string, ttl time.Duration, high, low int32, tls, enabled bool) RegistryCache {
		return RegistryCache{
			RemoteURL:         &remoteURL,
			Volume:            &Volume{Size: new(resource.MustParse(size))},
			GarbageCollection: &GarbageCollection{TTL: &metav1.Duration{Duration: ttl}, HighWatermark: &high, LowWatermark: &low},
			HTTP:              &HTTP{TLS: &tls},
			HighAvailability:  &HighAvailability{Enabled: &enabled},
		}
	}
	gc := func(gc GarbageCollection) RegistryCache { return RegistryCache{GarbageCollection: &gc} }
	const week = 168 * time.Hour
	for _, tc := range []struct {
		name           string
		upstream       string
		given, wantAll RegistryCache
	}{
		{"nothing", "ghcr.io", RegistryCache{}, all("https://ghcr.io", "10Gi", week, 90, 80, true, false)},
		{"empty structs", "docker.io", RegistryCache{
			Volume: &Volume{}, GarbageCollection: &GarbageCollection{}, HTTP: &HTTP{}, HighAvailability: &HighAvailability{},
		}, all("https://registry-1.docker.io", "10Gi", week, 90, 80, true, false)},
		{"everything", "a", all("http://b", "1Ti", 0, 50, 10, false, true), all("http://b", "1Ti", 0, 50, 10, false, true)},
		{"a high watermark takes the low one along", "a", gc(GarbageCollection{HighWatermark: new(int32(70))}), all("https://a", "10Gi", week, 70, 60, true, false)},
		{"but not below zero", "a", gc(GarbageCollection{HighWatermark: new(int32(5))}), all("https://a", "10Gi", week, 5, 0, true, false)},
		{"low watermark 0", "a", gc(GarbageCollection{LowWatermark: new(int32(0))}), all("https://a", "10Gi", week, 90, 0, true, false)},
	} {
		tc.given.Upstream, tc.wantAll.Upstream = tc.upstream, tc.upstream
		config, want := &RegistryConfig{Caches: []RegistryCache{tc.given}}, &RegistryConfig{Caches: []RegistryCache{tc.wantAll}}
		for _, round := range []string{"once", "twice"} {
			SetDefaults(config)
			if diff := cmp.Diff(want, config); diff != "" {
				t.Errorf("%s, %s: -want +got:\n%s", tc.name, round, diff)
			}
		}
	}
}
