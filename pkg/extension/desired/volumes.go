// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

// VolumeClaimTemplate is the template of the claims of cache, the only one of its StatefulSet. A cache that runs keeps
// the claims that it has: a change of the template is for the replicas that are added later.
func VolumeClaimTemplate(cache v1alpha3.RegistryCache) corev1.PersistentVolumeClaim {
	return corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: contentVolume, Labels: labels(cache)},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			StorageClassName: cache.Volume.StorageClassName,
			Resources: corev1.VolumeResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceStorage: *cache.Volume.Size},
			},
		},
	}
}

// ClaimOrdinal tells which replica of cache, counted from 0, has the claim of that name: 1 for
// "cache-volume-registry-docker-io-1". ok is false if it is a claim of somebody else.
func ClaimOrdinal(cache v1alpha3.RegistryCache, name string) (ordinal int32, ok bool) {
	suffix, ok := strings.CutPrefix(name, contentVolume+"-"+cache.ObjectName()+"-")
	if !ok {
		return 0, false
	}
	number, err := strconv.ParseInt(suffix, 10, 32)
	// Only what Kubernetes writes itself: no "+1", no "01".
	if err != nil || number < 0 || strconv.FormatInt(number, 10) != suffix {
		return 0, false
	}
	return int32(number), true
}
