// SPDX-License-Identifier: Apache-2.0

package desired

import (
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

// highlyAvailableReplicas is how many pods a highly available cache has. It is also the number that Gardener's resource
// manager sets where it finds the label of highly available servers.
const highlyAvailableReplicas = 2

// Replicas is how many pods the cache has.
func Replicas(cache v1alpha3.RegistryCache) int {
	if highlyAvailable(cache) {
		return highlyAvailableReplicas
	}
	return 1
}

func highlyAvailable(cache v1alpha3.RegistryCache) bool {
	return cache.HighAvailability != nil && *cache.HighAvailability.Enabled
}

// makeHighlyAvailable lets set have two pods, each with a volume of its own, that are spread over nodes and zones.
//
// In a Shoot a webhook of the resource manager has the last word about every StatefulSet of kube-system with more than
// one replica (gardener/gardener, pkg/resourcemanager/webhook/highavailabilityconfig): it replaces the constraints for
// hosts and zones, and zones become compulsory if the worker pools have several. What is set here holds where that
// webhook is not. It is a wish, not a condition: on a single node a second pod that must not run there would be pending
// for ever, and a StatefulSet does not update one pod while the other one is not ready.
func makeHighlyAvailable(set *appsv1.StatefulSet) {
	set.Labels[resourcesv1alpha1.HighAvailabilityConfigType] = resourcesv1alpha1.HighAvailabilityConfigTypeServer
	// The label alone is not enough: the webhook acts on it only where the namespace has a label as well.
	set.Spec.Replicas = new(int32(highlyAvailableReplicas))
	for _, key := range []string{corev1.LabelHostname, corev1.LabelTopologyZone} {
		set.Spec.Template.Spec.TopologySpreadConstraints = append(set.Spec.Template.Spec.TopologySpreadConstraints, corev1.TopologySpreadConstraint{
			TopologyKey:       key,
			MaxSkew:           1,
			WhenUnsatisfiable: corev1.ScheduleAnyway,
			LabelSelector:     set.Spec.Selector,
		})
	}
}

// disruptionBudget lets nodes be drained one after the other. Without high availability there is none: it would keep the
// node of the only pod from being drained.
func disruptionBudget(cache v1alpha3.RegistryCache) *policyv1.PodDisruptionBudget {
	return &policyv1.PodDisruptionBudget{
		ObjectMeta: objectMeta(cache, cache.ObjectName()),
		Spec: policyv1.PodDisruptionBudgetSpec{
			MaxUnavailable: new(intstr.FromInt32(1)),
			Selector:       &metav1.LabelSelector{MatchLabels: selector(cache)},
			// A pod that is not ready serves nobody, and must not hold up the drain of its node.
			UnhealthyPodEvictionPolicy: new(policyv1.AlwaysAllow),
		},
	}
}
