// SPDX-License-Identifier: Apache-2.0

package v1alpha2

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// APIVersion is the apiVersion of every object of this package.
const APIVersion = "registry.extensions.gardener.cloud/v1alpha2"

// RegistryConfig lists the upstream registries that get a pull-through cache in the Shoot.
type RegistryConfig struct {
	metav1.TypeMeta `json:",inline"`

	// Caches are the registry caches to deploy. Required, at least one; every upstream at most once.
	Caches []RegistryCache `json:"caches"`
}

// RegistryCache is the cache of one upstream.
type RegistryCache struct {
	// Upstream is the remote registry to cache, in the format host[:port] without a scheme, for example "docker.io".
	// Required. The registry is spoken to by https.
	Upstream string `json:"upstream"`
	// Volume is the volume that keeps the cached content.
	// +optional
	Volume *Volume `json:"volume,omitempty"`
	// GarbageCollection says whether images are deleted that nobody has used for a while. On if it is left out.
	// +optional
	GarbageCollection *GarbageCollection `json:"garbageCollection,omitempty"`
	// SecretReferenceName is the name of the entry of the Shoot's spec.resources that refers to the Secret with the
	// credentials for the upstream. The Secret must be immutable and have the keys "username" and "password", no others.
	// For new credentials, let the entry refer to another Secret; the cache takes them over while it runs. Anonymous
	// access if it is left out.
	// +optional
	SecretReferenceName *string `json:"secretReferenceName,omitempty"`
}

// Volume is the persistent volume of a cache.
type Volume struct {
	// Size is the requested size. Defaults to 10Gi; must be greater than 0. It may grow later, and cannot shrink.
	// +optional
	Size *resource.Quantity `json:"size,omitempty"`
	// StorageClassName is the StorageClass of the volume. The Shoot's default StorageClass if it is left out. It cannot
	// be changed later.
	// +optional
	StorageClassName *string `json:"storageClassName,omitempty"`
}

// GarbageCollection turns the deletion of unused images on or off.
type GarbageCollection struct {
	// Enabled defaults to true: an image lives for 7 days after its last use. With false nothing is ever deleted.
	// +optional
	Enabled *bool `json:"enabled,omitempty"`
}
