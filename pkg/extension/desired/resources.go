// SPDX-License-Identifier: Apache-2.0

package desired

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// DefaultResources are the resources of a cache's container if the operator sets none. Requests only: what the server
// takes beyond them follows from how many nodes pull at once, and a limit would break those pulls.
func DefaultResources() corev1.ResourceRequirements {
	return corev1.ResourceRequirements{Requests: corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("20m"),
		corev1.ResourceMemory: resource.MustParse("64Mi"),
	}}
}

func resourcesOf(options Options) corev1.ResourceRequirements {
	if len(options.Resources.Requests) == 0 && len(options.Resources.Limits) == 0 {
		return DefaultResources()
	}
	return *options.Resources.DeepCopy()
}
