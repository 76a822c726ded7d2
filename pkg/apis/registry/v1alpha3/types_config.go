// SPDX-License-Identifier: Apache-2.0

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

// RegistryCache is the cache of one upstream. A field that is left out has its default, also if the field that it is
// part of is given: "http: {}" says the same as no "http" at all.
type RegistryCache struct {
	// Upstream is the remote registry to cache, in the format host[:port] without a scheme, for example "docker.io".
	// It is the host of the image references that the cache serves. Required.
	Upstream string `json:"upstream"`
	// RemoteURL is where the upstream's registry API is served: http or https, host, optional port and optional path.
	// The path is the beginning of the names of repositories, for example of a Harbor project: with
	// "https://harbor.example.com/dockerhub", library/alpine is the repository dockerhub/library/alpine.
	// Defaults to "https://<upstream>", and to "https://registry-1.docker.io" for docker.io. Only its scheme can be
	// changed later: the volume holds what came from that host.
	// +optional
	RemoteURL *string `json:"remoteURL,omitempty"`
	// Volume is the volume that keeps the cached content.
	// +optional
	Volume *Volume `json:"volume,omitempty"`
	// GarbageCollection is the deletion of content that nobody uses any more.
	// +optional
	GarbageCollection *GarbageCollection `json:"garbageCollection,omitempty"`
	// SecretReferenceName is the name of the entry of the Shoot's spec.resources that refers to the Secret with the
	// credentials for the upstream. The Secret must be immutable and have the keys "username" and "password", no others.
	// For new credentials, let the entry refer to another Secret; the cache takes them over while it runs. Anonymous
	// access if it is left out.
	// +optional
	SecretReferenceName *string `json:"secretReferenceName,omitempty"`
	// CABundleSecretReferenceName is the name of the entry of the Shoot's spec.resources that refers to the Secret with
	// the certificate authorities that are trusted for the upstream, beside the public ones. The Secret must be immutable
	// and have the key "bundle.crt", no other, with certificates in PEM. For others, let the entry refer to another
	// Secret. The nodes do not get them: pulls that do not go through the cache need those roots from elsewhere.
	// +optional
	CABundleSecretReferenceName *string `json:"caBundleSecretReferenceName,omitempty"`
	// Proxy is the proxy through which the cache reaches the upstream. None if it is left out.
	// +optional
	Proxy *Proxy `json:"proxy,omitempty"`
	// HTTP is how nodes and pods of the Shoot speak to the cache.
	// +optional
	HTTP *HTTP `json:"http,omitempty"`
	// HighAvailability is how the cache outlives the loss of a node.
	// +optional
	HighAvailability *HighAvailability `json:"highAvailability,omitempty"`
	// ServiceNameSuffix replaces the upstream in the names of the cache's objects in the Shoot: the Service is called
	// "registry-<suffix>". It tells two caches apart whose upstreams give the same name, such as my.reg.io and
	// my-reg.io. A DNS label of at most 54 characters. Defaults to the upstream with "-" in place of "." and ":". It
	// cannot be changed later.
	// +optional
	ServiceNameSuffix *string `json:"serviceNameSuffix,omitempty"`
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

// GarbageCollection is the deletion of content that nobody uses any more. It can be changed, switched off and on again
// at any time.
type GarbageCollection struct {
	// TTL is how long content is kept after its last use, in Go's notation for durations. Defaults to 168h (7 days); 0s
	// means that nothing is ever deleted, whatever the watermarks are; must not be negative.
	// +optional
	TTL *metav1.Duration `json:"ttl,omitempty"`
	// HighWatermark is the used share of the volume, in percent, from which on content is deleted before its time, what
	// was used longest ago first. From 1 to 100, defaults to 90.
	// +optional
	HighWatermark *int32 `json:"highWatermark,omitempty"`
	// LowWatermark is the used share of the volume, in percent, at which that deletion ends. From 0 to below
	// HighWatermark. Defaults to 10 less than HighWatermark, which makes 80, or to 0 if that is more.
	// +optional
	LowWatermark *int32 `json:"lowWatermark,omitempty"`
}

// Proxy is the proxy through which a cache reaches its upstream, and where that redirects to. Its fields become the
// environment variables HTTP_PROXY, HTTPS_PROXY and NO_PROXY of the cache.
type Proxy struct {
	// HTTPProxy is the proxy for http URLs: http or https, host and optional port, no path.
	// +optional
	HTTPProxy *string `json:"httpProxy,omitempty"`
	// HTTPSProxy is the proxy for https URLs, in the same format. It matters for almost every upstream.
	// +optional
	HTTPSProxy *string `json:"httpsProxy,omitempty"`
	// NoProxy lists what is reached without the proxy, separated by commas: domains ("example.com" with everything
	// below it, ".example.com" only what is below it), IP addresses, each with an optional port, and IP ranges
	// ("10.0.0.0/8"). "*" means everything.
	// +optional
	NoProxy *string `json:"noProxy,omitempty"`
	// SecretReferenceName is the name of the entry of the Shoot's spec.resources that refers to the Secret with the
	// credentials for the proxies of HTTPProxy and HTTPSProxy (HTTP Basic authentication). The Secret must be immutable and
	// have the keys "username" and "password", no others, with at most 1024 bytes each. For new credentials, let the entry
	// refer to another Secret; the cache reads them without a restart. No authentication if it is left out.
	// +optional
	SecretReferenceName *string `json:"secretReferenceName,omitempty"`
}

// HTTP is how nodes and pods of the Shoot speak to a cache.
type HTTP struct {
	// TLS says whether the cache is served by https, with a certificate of a CA that is made for the Shoot and rotated
	// together with its other CAs. Defaults to true. It can be changed at any time, which restarts the cache; the nodes
	// pull from the upstream meanwhile.
	// +optional
	TLS *bool `json:"tls,omitempty"`
}

// HighAvailability is how a cache outlives the loss of a node.
type HighAvailability struct {
	// Enabled says whether the cache has two replicas, on different nodes and in different zones where there are some.
	// Each has a volume of its own and fetches what it lacks from the upstream. Defaults to false. It can be changed at
	// any time; the volume of a replica that is given up stays until the cache is removed.
	// +optional
	Enabled *bool `json:"enabled,omitempty"`
}
