package v1alpha3

import (
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DefaultTTL is the time for which unused content is kept if the RegistryConfig does not say: 7 days.
const DefaultTTL = 7 * 24 * time.Hour

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

// SetDefaults fills in every field of config that its owner left out and that has a default. Volume and its Size,
// GarbageCollection and its TTL, and RemoteURL are not nil afterwards.
func SetDefaults(config *RegistryConfig) {
	for i := range config.Caches {
		cache := &config.Caches[i]
		if cache.RemoteURL == nil {
			cache.RemoteURL = new(DefaultRemoteURL(cache.Upstream))
		}
		if cache.Volume == nil {
			cache.Volume = &Volume{}
		}
		if cache.Volume.Size == nil {
			cache.Volume.Size = new(DefaultVolumeSize())
		}
		if cache.GarbageCollection == nil {
			cache.GarbageCollection = &GarbageCollection{}
		}
		if cache.GarbageCollection.TTL == nil {
			cache.GarbageCollection.TTL = &metav1.Duration{Duration: DefaultTTL}
		}
	}
}
