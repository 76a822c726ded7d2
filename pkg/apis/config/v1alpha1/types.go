// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 is the configuration file of the extension's controller, which the operator of the landscape writes.
package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// APIVersion is the apiVersion of every object of this package.
	APIVersion = "config.registry.extensions.gardener.cloud/v1alpha1"
	// Kind is the kind of ControllerConfiguration.
	Kind = "ControllerConfiguration"
)

// Engine is the program that serves caches.
type Engine string

const (
	// RegistryCache is the cache server of this project.
	RegistryCache Engine = "registry-cache"
	// Distribution is the registry of the distribution project, as it is.
	Distribution Engine = "distribution"
)

// ControllerConfiguration holds for the caches of all Shoots.
type ControllerConfiguration struct {
	metav1.TypeMeta `json:",inline"`

	// Engine is the program that serves the caches. With another engine the next reconciliation of a Shoot restarts the
	// pods of its caches; they go on with what their volumes hold. Default registry-cache.
	// +optional
	Engine Engine `json:"engine,omitempty"`
	// CABundle are roots in PEM, one certificate after the other, which every cache trusts for its upstream beside the
	// public ones: for landscapes whose registries, or whose way to them, have a certificate authority of their own.
	// Blank means none.
	// +optional
	CABundle string `json:"caBundle,omitempty"`
	// Resources are the requests and limits of cpu and memory of the container of each cache. They replace the default
	// as a whole: requests of 20m cpu and 64Mi memory, and no limits. In a Shoot with vertical pod autoscaling the
	// requests are where it starts.
	// +optional
	Resources corev1.ResourceRequirements `json:"resources,omitzero"`
	// CacheServer are settings of the cache server. With another value the next reconciliation of a Shoot restarts the pods
	// of its caches. The engine distribution has no such settings and ignores them.
	// +optional
	CacheServer CacheServer `json:"cacheServer,omitzero"`
	// Readiness is how often the controller looks at caches between reconciliations.
	// +optional
	Readiness Readiness `json:"readiness,omitzero"`
}

// CacheServer are settings of the cache server with the names that they have in its own configuration. Without a value it
// uses its default.
type CacheServer struct {
	// Upstream is how the cache server uses upstreams.
	// +optional
	Upstream CacheServerUpstream `json:"upstream,omitzero"`
	// Tags is how long it uses answers of an upstream about tags and lists.
	// +optional
	Tags CacheServerTags `json:"tags,omitzero"`
	// Debug is what it serves on port 5001 beside health, metrics and states.
	// +optional
	Debug CacheServerDebug `json:"debug,omitzero"`
}

// CacheServerUpstream is how the cache server uses upstreams.
type CacheServerUpstream struct {
	// HeaderTimeout is the time in which an upstream must send the header of a response, including connecting and
	// authenticating. More than 0s, at most 27s, default 25s.
	// +optional
	HeaderTimeout *metav1.Duration `json:"headerTimeout,omitempty"`
}

// CacheServerTags is how long the cache server uses answers of an upstream about tags and lists.
type CacheServerTags struct {
	// MaxStale is the time since the last answer of an upstream about a tag for which the cache uses this answer while the
	// upstream fails. 0s means that the cache returns the error instead. Default 24h.
	// +optional
	MaxStale *metav1.Duration `json:"maxStale,omitempty"`
}

// CacheServerDebug is what the cache server serves for debugging.
type CacheServerDebug struct {
	// PProf serves profiles of the process on /debug/pprof/, to every pod and node of a Shoot. Default false.
	// +optional
	PProf bool `json:"pprof,omitempty"`
}

// Readiness are the intervals at which the controller looks at the caches of a Shoot, to report about them in the status
// of the Extension and to let volumes grow that could not before. Each look asks the API server of the Shoot a few
// times for each cache.
type Readiness struct {
	// Interval is the time between two looks while all is well. At least 10s, default 5m.
	// +optional
	Interval *metav1.Duration `json:"interval,omitempty"`
	// UnreadyInterval is the time between two looks while a pod is not ready, a volume grows or an upstream is not
	// reachable. At least 1s, at most
	// Interval, default 30s.
	// +optional
	UnreadyInterval *metav1.Duration `json:"unreadyInterval,omitempty"`
}
