package v1alpha3

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// APIVersion is the apiVersion of every object of this package.
const APIVersion = "registry.extensions.gardener.cloud/v1alpha3"

// RegistryConfig lists the upstream registries that get a pull-through cache in the Shoot.
type RegistryConfig struct {
	metav1.TypeMeta `json:",inline"`

	// Caches are the registry caches to deploy. Required, at least one; every upstream at most once.
	Caches []RegistryCache `json:"caches"`
}

// RegistryCache is the cache of one upstream.
type RegistryCache struct {
	// Upstream is the remote registry to cache, in the format host[:port] without a scheme, for example "docker.io".
	// It is the host of the image references that the cache serves. Required.
	Upstream string `json:"upstream"`
	// RemoteURL is where the upstream's registry API is served: http or https, host and optional port, no path.
	// Defaults to "https://<upstream>", and to "https://registry-1.docker.io" for docker.io.
	// +optional
	RemoteURL *string `json:"remoteURL,omitempty"`
	// Volume is the volume that keeps the cached content.
	// +optional
	Volume *Volume `json:"volume,omitempty"`
	// GarbageCollection is the deletion of content that nobody uses any more.
	// +optional
	GarbageCollection *GarbageCollection `json:"garbageCollection,omitempty"`
}

// Volume is the persistent volume of a cache.
type Volume struct {
	// Size is the requested size. Defaults to 10Gi; must be greater than 0.
	// +optional
	Size *resource.Quantity `json:"size,omitempty"`
	// StorageClassName is the StorageClass of the volume. The Shoot's default StorageClass if it is left out.
	// +optional
	StorageClassName *string `json:"storageClassName,omitempty"`
}

// GarbageCollection is the deletion of content that nobody uses any more.
type GarbageCollection struct {
	// TTL is how long content is kept after its last use. Defaults to 168h (7 days); 0s means that nothing is ever
	// deleted; must not be negative.
	// +optional
	TTL *metav1.Duration `json:"ttl,omitempty"`
}
