// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/contract"
)

// ValidateRegistryConfigUpdate checks what config changes of old, and nothing else of config. In both the defaults must
// be filled in. Caches are the same if they have the same upstream; they may come and go, and everything may change in
// them but what their volume depends on.
func ValidateRegistryConfigUpdate(old, config *v1alpha3.RegistryConfig, fldPath *field.Path) field.ErrorList {
	upstreams, named := map[string]*v1alpha3.RegistryCache{}, map[string]*v1alpha3.RegistryCache{}
	for i := range old.Caches {
		cache := &old.Caches[i]
		upstreams[cache.Upstream], named[cache.ObjectName()] = cache, cache
	}
	kept := map[string]bool{}
	for i := range config.Caches {
		kept[config.Caches[i].Upstream] = true
	}

	var errs field.ErrorList
	for i := range config.Caches {
		cache, path := &config.Caches[i], fldPath.Child("caches").Index(i)
		if before, exists := upstreams[cache.Upstream]; exists {
			errs = append(errs, validateCacheUpdate(before, cache, path)...)
			continue
		}
		// In one step, the new cache would get the volume of the old one with what it holds. If the old one stays, the
		// two collide, which is found without looking at old.
		if before := named[cache.ObjectName()]; before != nil && !kept[before.Upstream] {
			err := collision(cache, path, fmt.Sprintf("%q, which this change removes", before.Upstream))
			err.Detail += ", or remove the other one first and add this one when it is gone"
			errs = append(errs, err)
		}
	}
	return errs
}

func validateCacheUpdate(old, cache *v1alpha3.RegistryCache, path *field.Path) field.ErrorList {
	const remedy = "; to start with an empty volume, remove the cache and add it again when it is gone"
	var errs field.ErrorList
	if was, is := remote(old), remote(cache); was != is && was != "" && is != "" {
		part := "host"
		if strings.Contains(was+is, "/") {
			part = "host and path"
		}
		errs = append(errs, field.Invalid(path.Child("remoteURL"), *cache.RemoteURL, fmt.Sprintf(
			"must keep the %s %q, the volume holds what came from there%s", part, was, remedy)))
	}
	if was, is := old.Volume.Size, cache.Volume.Size; is.Sign() > 0 && is.Cmp(*was) < 0 {
		errs = append(errs, field.Invalid(path.Child("volume", "size"), is.String(), fmt.Sprintf(
			"must not be less than before, write at least %s: a volume cannot shrink%s", was, remedy)))
	}
	if was, is := old.Volume.StorageClassName, cache.Volume.StorageClassName; !equal(was, is) {
		errs = append(errs, mustStay(path.Child("volume", "storageClassName"), was, is, remedy))
	}
	if was, is := old.ServiceNameSuffix, cache.ServiceNameSuffix; !equal(was, is) {
		errs = append(errs, mustStay(path.Child("serviceNameSuffix"), was, is, remedy))
	}
	return errs
}

func mustStay(path *field.Path, was, is *string, remedy string) *field.Error {
	must, value := "must stay left out", any(field.OmitValueType{})
	if was != nil {
		must = fmt.Sprintf("must stay %q", *was)
	}
	if is != nil {
		value = *is
	}
	return field.Invalid(path, value, must+remedy)
}

func equal(a, b *string) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// remote returns host, port and path of the remote URL, or "" if the URL is invalid. It does not depend on the scheme.
func remote(cache *v1alpha3.RegistryCache) string {
	parsed, err := contract.ParseRemoteURL(*cache.RemoteURL)
	if err != nil {
		return ""
	}
	return parsed.Host + parsed.Path
}
