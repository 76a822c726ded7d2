package v1alpha3

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// ConditionReady is the type of the condition that tells whether a cache can serve its clients. It says nothing about
// the upstream.
const ConditionReady = "Ready"

// RegistryStatus is what the controller writes to status.providerStatus of the Extension: what the nodes need to know
// to use the caches, and how the caches are.
type RegistryStatus struct {
	metav1.TypeMeta `json:",inline"`

	// CASecretName is the name of the Secret with the CA bundle that signed the caches' certificates, in the namespace
	// of the Extension. Absent if no cache speaks TLS.
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
	// Endpoint is the URL under which every node and pod of the Shoot reaches the cache: "http://<cluster IP>:5000",
	// an IPv6 address in brackets.
	Endpoint string `json:"endpoint"`
	// RemoteURL is the URL of the upstream's registry API, default filled in.
	RemoteURL string `json:"remoteURL"`
	// ClusterIP is the address of the cache's Service in the Shoot.
	ClusterIP string `json:"clusterIP"`
	// Conditions tell how the cache is. The type Ready is always there.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}
