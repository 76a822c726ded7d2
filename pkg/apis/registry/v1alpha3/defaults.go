// SPDX-License-Identifier: Apache-2.0

package v1alpha3

import (
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// DefaultTTL is the time for which unused content is kept if the RegistryConfig does not say: 7 days.
	DefaultTTL = 7 * 24 * time.Hour
	// DefaultHighWatermark is the used share of the volume, in percent, at which eviction starts if the RegistryConfig
	// does not say.
	DefaultHighWatermark = 90
	// DefaultTLS tells whether a cache is served by https if the RegistryConfig does not say.
	DefaultTLS = true

	// watermarkDistance is how far below the high watermark the low one is by default, in percent of the volume.
	watermarkDistance = 10
)

// DefaultVolumeSize is the size of a cache's volume if the RegistryConfig does not say: 10Gi.
func DefaultVolumeSize() resource.Quantity {
	return resource.MustParse("10Gi")
}

// DefaultRemoteURL is the URL of the registry API of upstream (host[:port]): https on the same host, except for
// docker.io, whose API is served by registry-1.docker.io.
func DefaultRemoteURL(upstream string) string {
	if upstream == "docker.io" {
		return "https://registry-1.docker.io"
	}
	return "https://" + upstream
}

// SetDefaults fills in every field of config that its owner left out and that has a default. RemoteURL, Volume.Size,
// HTTP.TLS, HighAvailability.Enabled and all fields of GarbageCollection are not nil afterwards.
func SetDefaults(config *RegistryConfig) {
	for i := range config.Caches {
		cache := &config.Caches[i]
		setDefault(&cache.RemoteURL, DefaultRemoteURL(cache.Upstream))

		setDefault(&cache.Volume, Volume{})
		setDefault(&cache.Volume.Size, DefaultVolumeSize())

		setDefault(&cache.GarbageCollection, GarbageCollection{})
		setDefault(&cache.GarbageCollection.TTL, metav1.Duration{Duration: DefaultTTL})
		setDefault(&cache.GarbageCollection.HighWatermark, DefaultHighWatermark)
		setDefault(&cache.GarbageCollection.LowWatermark, max(0, *cache.GarbageCollection.HighWatermark-watermarkDistance))

		setDefault(&cache.HTTP, HTTP{})
		setDefault(&cache.HTTP.TLS, DefaultTLS)

		setDefault(&cache.HighAvailability, HighAvailability{})
		setDefault(&cache.HighAvailability.Enabled, false)
	}
}

func setDefault[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}
