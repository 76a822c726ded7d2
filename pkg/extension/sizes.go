// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"slices"

	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

// contentSize returns the number of bytes that the content of cache may use on its volume (storage.size of the cache
// server): the capacity of the claim; its request, until it is bound; and the configured size before there is a claim. A
// claim that grows, or that cannot grow, has its old capacity. volume is that of the smallest replica, nil without a claim.
func contentSize(cache v1alpha3.RegistryCache, volume *v1alpha3.VolumeStatus) int64 {
	switch {
	case volume == nil:
		return cache.Volume.Size.Value()
	case volume.Capacity == nil:
		return volume.Requested.Value()
	default:
		return volume.Capacity.Value()
	}
}

// contentSizeChanged lets an Extension through if the size of a volume in its provider status has changed, so that the
// cache has another contentSize. The actuator publishes the sizes that it has deployed, and the readiness controller
// publishes later ones. A change of the configuration is none: gardenlet requests its reconciliation.
//
// A change that is published while no controller watches waits for the next reconciliation.
func contentSizeChanged() predicate.Predicate {
	changed := func(update event.UpdateEvent) bool {
		before, ok := update.ObjectOld.(*extensionsv1alpha1.Extension)
		if !ok {
			return false
		}
		after, ok := update.ObjectNew.(*extensionsv1alpha1.Extension)
		if !ok || after.DeletionTimestamp != nil {
			return false
		}
		// The controllers log what they cannot read.
		log := logr.Discard()
		configured, volumes := configuredCaches(log, after), map[string]*v1alpha3.VolumeStatus{}
		for _, status := range publishedCaches(log, before) {
			volumes[status.ObjectName()] = status.Volume
		}
		return slices.ContainsFunc(publishedCaches(log, after), func(status v1alpha3.RegistryCacheStatus) bool {
			cache, deployed := configured[status.ObjectName()]
			volume, known := volumes[status.ObjectName()]
			return deployed && known && contentSize(cache, volume) != contentSize(cache, status.Volume)
		})
	}
	return predicate.And(statusChanged(), predicate.Funcs{UpdateFunc: changed})
}
