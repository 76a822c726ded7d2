// SPDX-License-Identifier: Apache-2.0

package desired

import (
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	vpaautoscalingv1 "k8s.io/autoscaler/vertical-pod-autoscaler/pkg/apis/autoscaling.k8s.io/v1"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

// VerticalPodAutoscaler lets the requests of cache follow what it uses. It is for Shoots that have the autoscaler; others
// do not know the kind.
func VerticalPodAutoscaler(cache v1alpha3.RegistryCache) *vpaautoscalingv1.VerticalPodAutoscaler {
	return &vpaautoscalingv1.VerticalPodAutoscaler{
		ObjectMeta: objectMeta(cache, cache.ObjectName()),
		Spec: vpaautoscalingv1.VerticalPodAutoscalerSpec{
			TargetRef: &autoscalingv1.CrossVersionObjectReference{
				APIVersion: appsv1.SchemeGroupVersion.String(), Kind: "StatefulSet", Name: cache.ObjectName(),
			},
			// A new pod would interrupt pulls, so it is the last resort.
			UpdatePolicy: &vpaautoscalingv1.PodUpdatePolicy{UpdateMode: new(vpaautoscalingv1.UpdateModeInPlaceOrRecreate)},
			ResourcePolicy: &vpaautoscalingv1.PodResourcePolicy{ContainerPolicies: []vpaautoscalingv1.ContainerResourcePolicy{{
				ContainerName: vpaautoscalingv1.DefaultContainerResourcePolicy,
				// Limits stay as the operator has set them.
				ControlledValues: new(vpaautoscalingv1.ContainerControlledValuesRequestsOnly),
				MinAllowed:       corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("20Mi")},
			}}},
		},
	}
}
