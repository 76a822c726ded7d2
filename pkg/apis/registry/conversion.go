package registry

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha1"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

// fromV1alpha1 says in v1alpha3 what in says. What in leaves out has the same default in both versions and stays out.
func fromV1alpha1(in *v1alpha1.RegistryConfig) *v1alpha3.RegistryConfig {
	out := &v1alpha3.RegistryConfig{
		TypeMeta: metav1.TypeMeta{APIVersion: v1alpha3.APIVersion, Kind: configKind},
		Caches:   make([]v1alpha3.RegistryCache, 0, len(in.Caches)),
	}
	for _, cache := range in.Caches {
		converted := v1alpha3.RegistryCache{Upstream: cache.Upstream}
		if cache.Size != nil {
			converted.Volume = &v1alpha3.Volume{Size: cache.Size}
		}
		if gc := cache.GarbageCollection; gc != nil && gc.Enabled != nil && !*gc.Enabled {
			converted.GarbageCollection = &v1alpha3.GarbageCollection{TTL: &metav1.Duration{}}
		}
		out.Caches = append(out.Caches, converted)
	}
	return out
}
