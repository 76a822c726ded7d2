// SPDX-License-Identifier: Apache-2.0

// Package monitoring computes what Gardener's monitoring in the Seed is to know about the caches of a Shoot: how to read
// their metrics, when to alert, and a dashboard. It does no I/O: equal input gives equal objects.
//
// All of it is for the Prometheus and the Plutono that gardenlet runs beside the control plane of the Shoot.
package monitoring

import (
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	v1beta1constants "github.com/gardener/gardener/pkg/apis/core/v1beta1/constants"
	"github.com/gardener/gardener/pkg/component/observability/monitoring/prometheus/shoot"
	monitoringutils "github.com/gardener/gardener/pkg/component/observability/monitoring/utils"
	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	monitoringv1alpha1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/contract"
)

// job is the label job of all metrics of caches, and part of the names of the objects.
const job = "registry-cache"

// Wanted tells whether there is a Prometheus for the Shoot: not for those whose purpose is testing.
func Wanted(shoot *gardencorev1beta1.Shoot) bool {
	return shoot.Spec.Purpose == nil || *shoot.Spec.Purpose != gardencorev1beta1.ShootPurposeTesting
}

// Objects are those for the caches of a Shoot, whose namespace in the Seed is given. Their names do not depend on the
// caches. They hold for either engine: an engine that is not in use has no metrics.
func Objects(namespace string, caches []v1alpha3.RegistryCache) []client.Object {
	return []client.Object{
		&monitoringv1alpha1.ScrapeConfig{
			TypeMeta:   metav1.TypeMeta{APIVersion: monitoringv1alpha1.SchemeGroupVersion.String(), Kind: monitoringv1alpha1.ScrapeConfigsKind},
			ObjectMeta: monitoringutils.ConfigObjectMeta(job, namespace, shoot.Label),
			Spec:       scrapeConfig(),
		},
		&monitoringv1.PrometheusRule{
			TypeMeta:   metav1.TypeMeta{APIVersion: monitoringv1.SchemeGroupVersion.String(), Kind: monitoringv1.PrometheusRuleKind},
			ObjectMeta: monitoringutils.ConfigObjectMeta(job, namespace, shoot.Label),
			Spec:       monitoringv1.PrometheusRuleSpec{Groups: []monitoringv1.RuleGroup{{Name: "registry-cache.rules", Rules: rules(caches)}}},
		},
		&corev1.ConfigMap{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
			ObjectMeta: metav1.ObjectMeta{
				Namespace: namespace, Name: job + "-dashboards",
				Labels: map[string]string{v1beta1constants.LabelPrefixMonitoringDashboard + shoot.Label: "true"},
			},
			Data: map[string]string{job + ".dashboard.json": dashboard()},
		},
	}
}

// scrapeConfig reads the metrics of each pod through the Shoot's API server, as that Prometheus does with all components
// in a Shoot.
func scrapeConfig() monitoringv1alpha1.ScrapeConfigSpec {
	spec := shoot.ClusterComponentScrapeConfigSpec(job, shoot.KubernetesServiceDiscoveryConfig{
		Role:              monitoringv1alpha1.KubernetesRolePod,
		PodNamePrefix:     "registry-",
		ContainerName:     contract.ContainerName,
		ContainerPortName: contract.DebugPortName,
	}, "registry_cache_.+", "registry_proxy_.+")
	// An upstream does not tell one cache from all others, the name of its StatefulSet does.
	spec.RelabelConfigs = append(spec.RelabelConfigs, monitoringv1.RelabelConfig{
		SourceLabels: []monitoringv1.LabelName{"__meta_kubernetes_pod_label_app"}, TargetLabel: "cache",
	})
	return spec
}
