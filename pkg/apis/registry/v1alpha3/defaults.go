// SPDX-License-Identifier: Apache-2.0

package v1alpha3

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/registry-cache/extension/pkg/contract"
)

const (
	// DefaultTLS is the default of HTTP.TLS.
	DefaultTLS = true
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
		setDefault(&cache.GarbageCollection.TTL, metav1.Duration{Duration: contract.DefaultTTL})
		setDefault(&cache.GarbageCollection.HighWatermark, contract.DefaultHighWatermark)
		setDefault(&cache.GarbageCollection.LowWatermark, int32(contract.DefaultLowWatermark(int(*cache.GarbageCollection.HighWatermark))))

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
