// SPDX-License-Identifier: Apache-2.0

package v1alpha3

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// ConditionReady is the type of the condition that tells whether a cache can serve its clients. It says nothing about
	// the upstream.
	ConditionReady = "Ready"
	// ConditionVolumeResized is the type of the condition that tells whether the volume of a cache has at least the size
	// that the RegistryConfig asks for, and if not, what to do. A cache serves its clients whatever it is.
	ConditionVolumeResized = "VolumeResized"
	// ConditionUpstreamReachable is the type of the condition that tells whether the upstream of a cache answers it, and if
	// not, what to do. A cache serves what it has whatever it is.
	ConditionUpstreamReachable = "UpstreamReachable"
	// ConditionVolumeUsable is the type of the condition that reports whether a cache can read and write its volume, and if
	// not, the consequence for pulls and what to do. Pulls succeed for each status.
	ConditionVolumeUsable = "VolumeUsable"
)

// RegistryStatus is what the controller writes to status.providerStatus of the Extension: what the nodes need to know
// to use the caches, and how the caches are.
type RegistryStatus struct {
	metav1.TypeMeta `json:",inline"`

	// CASecretName is the name of the Secret in the namespace of the Extension whose key "bundle.crt" has the CAs, in PEM,
	// by which the certificates of the caches are verified. Absent if no cache is served by https.
	// +optional
	CASecretName *string `json:"caSecretName,omitempty"`
	// Caches are the deployed caches, in the order of the RegistryConfig.
	Caches []RegistryCacheStatus `json:"caches"`
}

// RegistryCacheStatus is the state of the cache of one upstream.
type RegistryCacheStatus struct {
	// Upstream is the upstream of the RegistryConfig, host[:port].
	Upstream string `json:"upstream"`
	// Name is the name of the cache's StatefulSet in the Shoot, "registry-docker-io" for docker.io. If it is absent, an
	// older controller has written the status, which knew no other names than that of the upstream.
	// +optional
	Name string `json:"name,omitempty"`
	// Endpoint is the URL under which every node and pod of the Shoot reaches the cache: "https://<cluster IP>:5000",
	// or with http, an IPv6 address in brackets.
	Endpoint string `json:"endpoint"`
	// RemoteURL is the URL of the upstream's registry API, default filled in.
	RemoteURL string `json:"remoteURL"`
	// ClusterIP is the address of the cache's Service in the Shoot.
	ClusterIP string `json:"clusterIP"`
	// Engine is the program that serves the cache: "registry-cache" or "distribution". Absent if an older controller has
	// written the status.
	// +optional
	Engine string `json:"engine,omitempty"`
	// Volume is the size of the cache's volume. Absent while the cache has no PersistentVolumeClaim.
	// +optional
	Volume *VolumeStatus `json:"volume,omitempty"`
	// Conditions tell how the cache is. The type Ready is always there, VolumeResized together with the volume,
	// UpstreamReachable and VolumeUsable as soon as the cache was asked about its upstream and its volume.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// VolumeStatus is the size of the volume of a cache, as it was when the controller last looked. Where the cache has
// several replicas, each figure is the smallest of them.
type VolumeStatus struct {
	// Requested is what the PersistentVolumeClaim asks for. It is more than the size in the RegistryConfig if the claim
	// was enlarged by hand.
	Requested resource.Quantity `json:"requested"`
	// Capacity is what the PersistentVolumeClaim has. Absent until it is bound; less than requested while it grows.
	// +optional
	Capacity *resource.Quantity `json:"capacity,omitempty"`
}
