// SPDX-License-Identifier: Apache-2.0

// Package desired computes the objects of a cache in the Shoot from its configuration. It does no I/O: equal input gives
// equal objects.
//
// All objects of a cache live in the namespace kube-system and carry the label v1alpha3.UpstreamHostLabel. The Service is
// called ServiceName of the cache, the names of the others are or start with ObjectName of the cache.
package desired

import (
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/contract"
)

// Namespace is the namespace of all objects in the Shoot.
const Namespace = metav1.NamespaceSystem

// Service is the ClusterIP Service of cache. clusterIP pins its address: the API server gives a Service that was deleted
// and comes back the same one. With "" the API server chooses.
func Service(cache v1alpha3.RegistryCache, clusterIP string) *corev1.Service {
	port := func(name string, number int32) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Port: number, TargetPort: intstr.FromString(name), Protocol: corev1.ProtocolTCP}
	}
	return &corev1.Service{
		ObjectMeta: objectMeta(cache, cache.ServiceName()),
		Spec: corev1.ServiceSpec{
			Type:      corev1.ServiceTypeClusterIP,
			ClusterIP: clusterIP,
			Selector:  selector(cache),
			Ports:     []corev1.ServicePort{port(contract.RegistryPortName, contract.RegistryPort), port(contract.DebugPortName, contract.DebugPort)},
		},
	}
}

// Endpoint is the URL of cache if its Service has the address clusterIP: "https://<clusterIP>:5000", or with http if the
// cache is served by that, and an IPv6 address in brackets.
func Endpoint(cache v1alpha3.RegistryCache, clusterIP string) string {
	scheme := "http://"
	if TLS(cache) {
		scheme = "https://"
	}
	return scheme + net.JoinHostPort(clusterIP, strconv.Itoa(contract.RegistryPort))
}

// networkPolicy lets everybody in the Shoot reach the cache. Gardener denies ingress to kube-system unless a policy
// allows it; egress is allowed by the labels of the pod.
func networkPolicy(cache v1alpha3.RegistryCache) *networkingv1.NetworkPolicy {
	port := func(number int32) networkingv1.NetworkPolicyPort {
		return networkingv1.NetworkPolicyPort{Protocol: new(corev1.ProtocolTCP), Port: new(intstr.FromInt32(number))}
	}
	return &networkingv1.NetworkPolicy{
		ObjectMeta: objectMeta(cache, cache.ObjectName()),
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: selector(cache)},
			// No peers: containerd connects from the nodes, whose addresses no selector describes.
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{Ports: []networkingv1.NetworkPolicyPort{port(contract.RegistryPort), port(contract.DebugPort)}}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		},
	}
}

func objectMeta(cache v1alpha3.RegistryCache, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: Namespace, Name: name, Labels: labels(cache)}
}

// selector are the labels that tell the pods of one cache from those of all others. The upstream alone does not:
// "reg.io:5000" and "reg.io-5000" have the same label.
func selector(cache v1alpha3.RegistryCache) map[string]string {
	return map[string]string{
		"app":                      cache.ObjectName(),
		v1alpha3.UpstreamHostLabel: v1alpha3.UpstreamHostValue(cache.Upstream),
	}
}

// labels are the labels of every object of cache.
func labels(cache v1alpha3.RegistryCache) map[string]string {
	all := selector(cache)
	all["app.kubernetes.io/name"] = "registry-cache"
	return all
}
