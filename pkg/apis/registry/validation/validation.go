// SPDX-License-Identifier: Apache-2.0

// Package validation says what is wrong with a RegistryConfig, and what to write instead.
package validation

import (
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/contract"
)

// ValidateRegistryConfig checks a config in which the defaults are filled in. The paths of the errors start with
// fldPath and name the fields of v1alpha3.
func ValidateRegistryConfig(config *v1alpha3.RegistryConfig, fldPath *field.Path) field.ErrorList {
	cachesPath := fldPath.Child("caches")
	if len(config.Caches) == 0 {
		return field.ErrorList{field.Required(cachesPath, "at least one cache must be given, for example {upstream: docker.io}")}
	}

	var errs field.ErrorList
	unique := uniqueness{upstreams: map[string]bool{}, named: map[string]int{}}
	for i := range config.Caches {
		cache, path := &config.Caches[i], cachesPath.Index(i)

		invalid := validateUpstream(cache.Upstream, path.Child("upstream"))
		if suffix := cache.ServiceNameSuffix; suffix != nil {
			invalid = append(invalid, validateServiceNameSuffix(*suffix, path.Child("serviceNameSuffix"))...)
		}
		if len(invalid) == 0 {
			invalid = unique.validate(config.Caches, i, cachesPath)
		}
		errs = append(errs, invalid...)

		if cache.RemoteURL != nil && *cache.RemoteURL != v1alpha3.DefaultRemoteURL(cache.Upstream) {
			errs = append(errs, validateAddress(*cache.RemoteURL, contract.ParseRemoteURL, path.Child("remoteURL"))...)
		}
		if cache.Volume != nil {
			errs = append(errs, validateVolume(cache.Volume, path.Child("volume"))...)
		}
		if cache.GarbageCollection != nil {
			errs = append(errs, validateGarbageCollection(cache.GarbageCollection, path.Child("garbageCollection"))...)
		}
		errs = append(errs, validateReference(cache.SecretReferenceName, path.Child("secretReferenceName"))...)
		errs = append(errs, validateReference(cache.CABundleSecretReferenceName, path.Child("caBundleSecretReferenceName"))...)
		if cache.Proxy != nil {
			errs = append(errs, validateProxy(cache.Proxy, path.Child("proxy"))...)
		}
	}
	return errs
}

// uniqueness finds caches that would get in each other's way.
type uniqueness struct {
	upstreams map[string]bool
	// named has the index of the first cache with an object name. Different object names have different Service names:
	// the one is made from the other.
	named map[string]int
}

// validate compares the cache of that index with those before it.
func (u uniqueness) validate(caches []v1alpha3.RegistryCache, index int, cachesPath *field.Path) field.ErrorList {
	cache, path := &caches[index], cachesPath.Index(index)
	if u.upstreams[cache.Upstream] {
		return field.ErrorList{field.Duplicate(path.Child("upstream"), cache.Upstream)}
	}
	u.upstreams[cache.Upstream] = true
	first, taken := u.named[cache.ObjectName()]
	if !taken {
		u.named[cache.ObjectName()] = index
		return nil
	}
	return field.ErrorList{collision(cache, path, fmt.Sprintf("%s %q", cachesPath.Index(first).Child("upstream"), caches[first].Upstream))}
}

// collision is the error of a cache under path whose object name belongs to another one.
func collision(cache *v1alpha3.RegistryCache, path *field.Path, other string) *field.Error {
	name, value, remedy := "upstream", cache.Upstream, "a serviceNameSuffix (a field of v1alpha3)"
	if cache.ServiceNameSuffix != nil {
		name, value, remedy = "serviceNameSuffix", *cache.ServiceNameSuffix, "another serviceNameSuffix"
	}
	return field.Invalid(path.Child(name), value, fmt.Sprintf("its objects in the Shoot would be named %q like those of %s; give the cache of %q %s",
		cache.ObjectName(), other, cache.Upstream, remedy))
}

func validateUpstream(upstream string, path *field.Path) field.ErrorList {
	if upstream == "" {
		return field.ErrorList{field.Required(path, "must be host[:port], for example docker.io")}
	}
	return validateAddress(upstream, contract.ParseHost, path)
}

// validateAddress checks a value by its parser in package contract. A value that may contain a password is left out of
// the error.
func validateAddress[T any](value string, parse func(string) (T, error), path *field.Path) field.ErrorList {
	_, err := parse(value)
	if err == nil {
		return nil
	}
	var shown any = value
	if failure, ok := errors.AsType[*contract.AddressError](err); !ok || failure.Secret {
		shown = field.OmitValueType{}
	}
	return field.ErrorList{field.Invalid(path, shown, err.Error())}
}

func validateProxy(proxy *v1alpha3.Proxy, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if proxy.HTTPProxy != nil {
		errs = append(errs, validateAddress(*proxy.HTTPProxy, contract.ParseProxyURL, path.Child("httpProxy"))...)
	}
	if proxy.HTTPSProxy != nil {
		errs = append(errs, validateAddress(*proxy.HTTPSProxy, contract.ParseProxyURL, path.Child("httpsProxy"))...)
	}
	if proxy.NoProxy != nil {
		errs = append(errs, validateAddress(*proxy.NoProxy, contract.ParseNoProxy, path.Child("noProxy"))...)
	}
	errs = append(errs, validateReference(proxy.SecretReferenceName, path.Child("secretReferenceName"))...)
	if proxy.SecretReferenceName != nil && proxy.HTTPProxy == nil && proxy.HTTPSProxy == nil {
		errs = append(errs, field.Forbidden(path.Child("secretReferenceName"), "credentials need a proxy: set httpProxy or httpsProxy, or remove them"))
	}
	return errs
}

func validateServiceNameSuffix(suffix string, path *field.Path) field.ErrorList {
	if complaints := utilvalidation.IsDNS1123Label(suffix); len(complaints) > 0 || len(suffix) > v1alpha3.MaxServiceNameSuffix {
		return field.ErrorList{field.Invalid(path, suffix, fmt.Sprintf(
			"must have 1 to %d characters, lower case letters, digits and -, and begin and end with a letter or digit, for example docker-hub", v1alpha3.MaxServiceNameSuffix))}
	}
	return nil
}

func validateReference(name *string, path *field.Path) field.ErrorList {
	if name != nil && strings.TrimSpace(*name) == "" {
		return field.ErrorList{field.Invalid(path, *name, "must be the name of an entry of spec.resources, or be left out")}
	}
	return nil
}

func validateVolume(volume *v1alpha3.Volume, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if volume.Size != nil {
		errs = append(errs, validateSize(*volume.Size, path.Child("size"))...)
	}
	if name := volume.StorageClassName; name != nil {
		for _, complaint := range utilvalidation.IsDNS1123Subdomain(*name) {
			errs = append(errs, field.Invalid(path.Child("storageClassName"), *name, "must be the name of a StorageClass: "+complaint))
		}
	}
	return errs
}

func validateSize(size resource.Quantity, path *field.Path) field.ErrorList {
	// Value rounds up, so only a fraction of a byte differs from it: "10m" is a hundredth of a byte.
	whole := resource.NewQuantity(size.Value(), size.Format)
	switch {
	case size.Sign() <= 0:
		return field.ErrorList{field.Invalid(path, size.String(), "must be greater than 0, for example 10Gi")}
	case whole.Cmp(size) != 0:
		return field.ErrorList{field.Invalid(path, size.String(), "must be a whole number of bytes, for example 10Gi")}
	}
	return nil
}

func validateGarbageCollection(gc *v1alpha3.GarbageCollection, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	check := func(name string, value any, err error) {
		if err != nil {
			errs = append(errs, field.Invalid(path.Child(name), value, err.Error()))
		}
	}
	if gc.TTL != nil {
		check("ttl", gc.TTL.Duration.String(), contract.CheckTTL(gc.TTL.Duration))
	}
	high := contract.DefaultHighWatermark
	if gc.HighWatermark != nil {
		high = int(*gc.HighWatermark)
	}
	if err := contract.CheckHighWatermark(high); err != nil {
		check("highWatermark", high, err)
	} else if gc.LowWatermark != nil {
		check("lowWatermark", *gc.LowWatermark, contract.CheckLowWatermark(int(*gc.LowWatermark), high))
	}
	return errs
}
