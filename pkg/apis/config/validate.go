// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/registry-cache/extension/pkg/apis/config/v1alpha1"
	"github.com/registry-cache/extension/pkg/contract"
)

// The shortest intervals: every look costs requests to the API server of a Shoot, and a Seed has hundreds of them.
const (
	minReadinessInterval = 10 * time.Second
	minUnreadyInterval   = time.Second
)

var (
	engines   = []v1alpha1.Engine{v1alpha1.RegistryCache, v1alpha1.Distribution}
	resources = []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory}
)

// validate checks a configuration whose defaults are filled in.
func validate(configuration *v1alpha1.ControllerConfiguration) field.ErrorList {
	var errs field.ErrorList
	if !slices.Contains(engines, configuration.Engine) {
		errs = append(errs, field.NotSupported(field.NewPath("engine"), configuration.Engine, engines))
	}
	if configuration.CABundle != "" {
		if err := contract.CheckCABundle(configuration.CABundle); err != nil {
			errs = append(errs, field.Invalid(field.NewPath("caBundle"), field.OmitValueType{}, err.Error()))
		}
	}
	errs = append(errs, validateResources(configuration.Resources, field.NewPath("resources"))...)
	errs = append(errs, validateCacheServer(configuration.CacheServer, field.NewPath("cacheServer"))...)
	return append(errs, validateReadiness(configuration.Readiness, field.NewPath("readiness"))...)
}

func validateResources(requirements corev1.ResourceRequirements, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(requirements.Claims) > 0 {
		errs = append(errs, field.Forbidden(path.Child("claims"), "caches claim no devices; remove it"))
	}
	for _, list := range []struct {
		name       string
		quantities corev1.ResourceList
	}{{"requests", requirements.Requests}, {"limits", requirements.Limits}} {
		for _, name := range sortedNames(list.quantities) {
			quantity, path := list.quantities[name], path.Child(list.name).Key(string(name))
			switch {
			case !slices.Contains(resources, name):
				errs = append(errs, field.NotSupported(path, name, resources))
			case quantity.Sign() <= 0:
				errs = append(errs, field.Invalid(path, quantity.String(), "must be greater than 0; leave it out for none"))
			}
			limit, limited := requirements.Limits[name]
			if list.name == "requests" && limited && quantity.Cmp(limit) > 0 {
				errs = append(errs, field.Invalid(path, quantity.String(), fmt.Sprintf("must not be greater than the limit, which is %s", limit.String())))
			}
		}
	}
	return errs
}

// validateCacheServer applies the rules of the cache server.
func validateCacheServer(server v1alpha1.CacheServer, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, setting := range []struct {
		path  *field.Path
		value *metav1.Duration
		check func(time.Duration) error
	}{
		{path.Child("upstream", "headerTimeout"), server.Upstream.HeaderTimeout, contract.CheckHeaderTimeout},
		{path.Child("tags", "maxStale"), server.Tags.MaxStale, contract.CheckMaxStale},
	} {
		if setting.value == nil {
			continue
		}
		if err := setting.check(setting.value.Duration); err != nil {
			errs = append(errs, field.Invalid(setting.path, setting.value.Duration.String(), err.Error()))
		}
	}
	return errs
}

func validateReadiness(readiness v1alpha1.Readiness, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	interval, unready := readiness.Interval.Duration, readiness.UnreadyInterval.Duration
	if interval < minReadinessInterval {
		errs = append(errs, field.Invalid(path.Child("interval"), interval.String(), fmt.Sprintf("must be at least %s", minReadinessInterval)))
	}
	switch {
	case unready < minUnreadyInterval:
		errs = append(errs, field.Invalid(path.Child("unreadyInterval"), unready.String(), fmt.Sprintf("must be at least %s", minUnreadyInterval)))
	case unready > interval:
		errs = append(errs, field.Invalid(path.Child("unreadyInterval"), unready.String(), fmt.Sprintf("must not be greater than interval, which is %s", interval)))
	}
	return errs
}

func sortedNames(quantities corev1.ResourceList) []corev1.ResourceName {
	names := make([]corev1.ResourceName, 0, len(quantities))
	for name := range quantities {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b corev1.ResourceName) int { return strings.Compare(string(a), string(b)) })
	return names
}
