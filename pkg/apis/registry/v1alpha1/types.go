// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// APIVersion is the apiVersion of every object of this package.
const APIVersion = "registry.extensions.gardener.cloud/v1alpha1"

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
	// Size is the size of the cache's volume. Defaults to 10Gi; must be greater than 0. It may grow later, and cannot
	// shrink.
	// +optional
	Size *resource.Quantity `json:"size,omitempty"`
	// GarbageCollection says whether images are deleted that nobody has used for a while. On if it is left out.
	// +optional
	GarbageCollection *GarbageCollection `json:"garbageCollection,omitempty"`
}

// GarbageCollection turns the deletion of unused images on or off.
type GarbageCollection struct {
	// Enabled defaults to true: an image lives for 7 days after its last use. With false nothing is ever deleted.
	// +optional
	Enabled *bool `json:"enabled,omitempty"`
}
