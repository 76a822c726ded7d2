// SPDX-License-Identifier: Apache-2.0

package monitoring

import (
	"fmt"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

// alert is one alerting rule. A cache that does not work costs time and traffic, but no pull fails because of it, so
// nothing here is critical, and all of it waits until it is not a passing state.
type alert struct {
	name                 string
	expression           string
	after                monitoringv1.Duration
	severity             string
	labels               map[string]string
	summary, description string
}

func (a alert) rule() monitoringv1.Rule {
	labels := map[string]string{"service": job, "severity": a.severity, "type": "shoot", "visibility": "owner"}
	for key, value := range a.labels {
		labels[key] = value
	}
	return monitoringv1.Rule{
		Alert: a.name, Expr: intstr.FromString(a.expression), For: &a.after, Labels: labels,
		Annotations: map[string]string{"summary": a.summary, "description": a.description},
	}
}

func rules(caches []v1alpha3.RegistryCache) []monitoringv1.Rule {
	var all []monitoringv1.Rule
	for _, cache := range caches {
		all = append(all, down(cache).rule())
	}
	for _, alert := range alerts {
		all = append(all, alert.rule())
	}
	return all
}

// down fires also if there is no pod, which has no metrics: a volume that cannot be bound, for example.
func down(cache v1alpha3.RegistryCache) alert {
	return alert{
		name:       "RegistryCacheDown",
		expression: fmt.Sprintf(`absent(up{job=%q,cache=%q} == 1)`, job, cache.ObjectName()),
		after:      "30m",
		severity:   "warning",
		labels:     map[string]string{"upstream": cache.Upstream},
		summary:    "A registry cache does not run.",
		description: fmt.Sprintf("No pod of the cache of %s has answered for 30 minutes. Nodes pull from the upstream itself meanwhile. "+
			"Look at StatefulSet kube-system/%s and its events.", cache.Upstream, cache.ObjectName()),
	}
}

var alerts = []alert{
	{
		name: "RegistryCacheVolumeFull",
		expression: `kubelet_volume_stats_available_bytes{namespace="kube-system",persistentvolumeclaim=~"cache-volume-registry-.+"}
/ kubelet_volume_stats_capacity_bytes{namespace="kube-system",persistentvolumeclaim=~"cache-volume-registry-.+"} < 0.03`,
		after:    "1h",
		severity: "warning",
		summary:  "The volume of a registry cache is full.",
		description: "Volume {{ $labels.persistentvolumeclaim }} of a registry cache has less than 3 % free space: garbage collection is off, highWatermark is " +
			"very high, or something else fills the volume. Pulls go on, but what is new is not kept. Set garbageCollection.ttl, or enlarge volume.size.",
	},
	{
		name:       "RegistryCacheNotStoring",
		expression: `sum by (cache) (increase(registry_cache_storage_errors_total[15m])) > 0`,
		after:      "1h",
		severity:   "warning",
		summary:    "A registry cache cannot keep what it pulls.",
		description: "Cache {{ $labels.cache }} could not store objects for an hour, because its volume is full or broken, or the objects are larger than the " +
			"volume. Clients get them all the same, but from the upstream each time. The log of the pod has the reason; enlarge volume.size if it is the space.",
	},
	{
		name: "RegistryCacheVolumeSmall",
		expression: `sum by (cache) (increase(registry_cache_evictions_total{reason="least-recently-used"}[6h])) > 0
and max by (cache) (registry_cache_oldest_object_age_seconds) < 86400`,
		after:    "6h",
		severity: "info",
		summary:  "The volume of a registry cache is too small for what is pulled.",
		description: "Cache {{ $labels.cache }} deletes images which were used less than a day ago, because there is no space. They are pulled from the upstream " +
			"again. Enlarge volume.size.",
	},
	{
		name: "RegistryCacheUpstreamDenies",
		expression: `sum by (cache) (increase(registry_cache_upstream_requests_total{status=~"401|403"}[30m])) > 10
and sum by (cache) (increase(registry_cache_upstream_requests_total{status=~"401|403"}[30m]))
  > 0.5 * sum by (cache) (increase(registry_cache_upstream_requests_total[30m]))`,
		after:    "30m",
		severity: "warning",
		summary:  "An upstream denies most requests of a registry cache.",
		description: "The upstream of cache {{ $labels.cache }} has answered more than half of its requests with 401 or 403. The credentials of secretReferenceName " +
			"are wrong or have expired, or there are none.",
	},
	{
		name:       "RegistryCacheUpstreamLimits",
		expression: `sum by (cache) (increase(registry_cache_upstream_requests_total{status="429"}[15m])) > 0`,
		after:      "30m",
		severity:   "warning",
		summary:    "An upstream limits the requests of a registry cache.",
		description: "The upstream of cache {{ $labels.cache }} answers with 429 (too many requests). What is cached is still served; new images may fail until the " +
			"limit allows them. Credentials (secretReferenceName) usually raise it.",
	},
	{
		name: "RegistryCacheUpstreamUnreachable",
		expression: `sum by (cache) (increase(registry_cache_upstream_requests_total{status=~"none|5.."}[30m])) > 10
and sum by (cache) (increase(registry_cache_upstream_requests_total{status=~"none|5.."}[30m]))
  > 0.5 * sum by (cache) (increase(registry_cache_upstream_requests_total[30m]))`,
		after:    "30m",
		severity: "warning",
		summary:  "A registry cache does not reach its upstream.",
		description: "The upstream of cache {{ $labels.cache }} has not answered more than half of its requests, or with 5xx. What is cached is still served. " +
			"If nodes reach it, look at proxy, remoteURL and the certificates (caBundleSecretReferenceName); the log of the pod has the reason.",
	},
	{
		name:       "RegistryCacheRefusesConnections",
		expression: `sum by (cache) (increase(registry_cache_connections_refused_total[15m])) > 0`,
		after:      "15m",
		severity:   "warning",
		summary:    "A registry cache has too many clients.",
		description: "Cache {{ $labels.cache }} closes connections because it has as many as it may have. Nodes pull from the upstream then. A second pod " +
			"(highAvailability) takes half of them.",
	},
}
