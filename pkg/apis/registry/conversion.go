// SPDX-License-Identifier: Apache-2.0

package registry

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha1"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha2"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

// fromV1alpha1 says in v1alpha3 what in says. What in leaves out has the same default in both versions and stays out.
func fromV1alpha1(in *v1alpha1.RegistryConfig) *v1alpha3.RegistryConfig {
	out := newConfig(len(in.Caches))
	for _, cache := range in.Caches {
		converted := v1alpha3.RegistryCache{Upstream: cache.Upstream}
		if cache.Size != nil {
			converted.Volume = &v1alpha3.Volume{Size: cache.Size}
		}
		if cache.GarbageCollection != nil {
			converted.GarbageCollection = garbageCollection(cache.GarbageCollection.Enabled)
		}
		out.Caches = append(out.Caches, converted)
	}
	return out
}

// fromV1alpha2 does the same for v1alpha2.
func fromV1alpha2(in *v1alpha2.RegistryConfig) *v1alpha3.RegistryConfig {
	out := newConfig(len(in.Caches))
	for _, cache := range in.Caches {
		converted := v1alpha3.RegistryCache{Upstream: cache.Upstream, SecretReferenceName: cache.SecretReferenceName}
		if volume := cache.Volume; volume != nil {
			converted.Volume = &v1alpha3.Volume{Size: volume.Size, StorageClassName: volume.StorageClassName}
		}
		if cache.GarbageCollection != nil {
			converted.GarbageCollection = garbageCollection(cache.GarbageCollection.Enabled)
		}
		out.Caches = append(out.Caches, converted)
	}
	return out
}

func newConfig(caches int) *v1alpha3.RegistryConfig {
	return &v1alpha3.RegistryConfig{
		TypeMeta: metav1.TypeMeta{APIVersion: v1alpha3.APIVersion, Kind: configKind},
		Caches:   make([]v1alpha3.RegistryCache, 0, caches),
	}
}

// garbageCollection says by the time to live what the older versions say by a switch. On is the default.
func garbageCollection(enabled *bool) *v1alpha3.GarbageCollection {
	if enabled == nil || *enabled {
		return nil
	}
	return &v1alpha3.GarbageCollection{TTL: &metav1.Duration{}}
}
