// SPDX-License-Identifier: Apache-2.0

package registry

import (
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/registry-cache/extension/pkg/apis/registry/validation"
)

// ExtensionType is the type by which a Shoot asks for registry caches: spec.extensions[].type.
const ExtensionType = "registry-cache"

// ValidateShoot checks all that a Shoot says about registry caches: its provider config, the Secrets that it refers to,
// that none of the upstreams is mirrored as well, and that its nodes can use caches at all. old is what the Shoot was before, nil for a new one.
//
// Everything but the rules about changes is checked however little has changed: the config may stay as it is while
// spec.resources refers to another Secret. A Shoot that has disabled the extension, or is being deleted, gets no caches
// and may say what it likes; it must not be kept from other changes.
func ValidateShoot(shoot, old *gardencorev1beta1.Shoot, get validation.GetSecret) field.ErrorList {
	index := enabledExtension(shoot)
	if index < 0 || shoot.DeletionTimestamp != nil {
		return nil
	}
	path := field.NewPath("spec", "extensions").Index(index).Child("providerConfig")
	var oldRaw []byte
	if old != nil {
		// While the extension is disabled there is no volume, and nothing that would have to stay as it is.
		oldRaw = providerConfig(old, enabledExtension(old))
	}
	config, errs := decode(providerConfig(shoot, index), oldRaw, path)
	if config != nil {
		errs = append(errs, validateMirrors(config, shoot, path)...)
		errs = append(errs, validation.ValidateSecrets(config, shoot.Spec.Resources, get, path)...)
	}
	return append(errs, validateWorkers(shoot)...)
}

// enabledExtension is the index of the extension in the Shoot's spec, -1 if it has none or has disabled it.
func enabledExtension(shoot *gardencorev1beta1.Shoot) int {
	for i, extension := range shoot.Spec.Extensions {
		if extension.Type == ExtensionType && !isDisabled(extension) {
			return i
		}
	}
	return -1
}

func isDisabled(extension gardencorev1beta1.Extension) bool {
	return extension.Disabled != nil && *extension.Disabled
}

// providerConfig is the config of the extension with that index, nil if there is none.
func providerConfig(shoot *gardencorev1beta1.Shoot, index int) []byte {
	if index < 0 || shoot.Spec.Extensions[index].ProviderConfig == nil {
		return nil
	}
	return shoot.Spec.Extensions[index].ProviderConfig.Raw
}

// validateWorkers refuses nodes whose containers are not run by containerd. Without a cri they are.
func validateWorkers(shoot *gardencorev1beta1.Shoot) field.ErrorList {
	var errs field.ErrorList
	for i, worker := range shoot.Spec.Provider.Workers {
		if worker.CRI != nil && worker.CRI.Name != gardencorev1beta1.CRINameContainerD {
			path := field.NewPath("spec", "provider", "workers").Index(i).Child("cri", "name")
			errs = append(errs, field.NotSupported(path, worker.CRI.Name, []gardencorev1beta1.CRIName{gardencorev1beta1.CRINameContainerD}))
		}
	}
	return errs
}
