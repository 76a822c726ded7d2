// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"encoding/json"
	"fmt"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

// mirrorExtensionType is the type of the public Gardener extension that has nodes pull from mirrors which exist already.
const mirrorExtensionType = "registry-mirror"

// mirrorConfig is what counts of a MirrorConfig of mirror.extensions.gardener.cloud: for both extensions an upstream is
// the name of the directory in which containerd looks for hosts.toml.
type mirrorConfig struct {
	Mirrors []struct {
		Upstream string `json:"upstream"`
	} `json:"mirrors"`
}

// validateMirrors refuses caches of upstreams that the Shoot also has a mirror for: on the nodes there is one hosts.toml
// for both. The errors are about the caches of config, which is under path.
func validateMirrors(config *v1alpha3.RegistryConfig, shoot *gardencorev1beta1.Shoot, path *field.Path) field.ErrorList {
	mirrored := mirroredUpstreams(shoot)
	var errs field.ErrorList
	for i, cache := range config.Caches {
		if mirror, ok := mirrored[cache.Upstream]; ok {
			errs = append(errs, field.Invalid(path.Child("caches").Index(i).Child("upstream"), shorten(cache.Upstream), fmt.Sprintf(
				"an upstream cannot be cached and mirrored at once, and %s is the same; remove one of the two", mirror)))
		}
	}
	return errs
}

// mirroredUpstreams are the paths under which the Shoot has mirrors, by upstream. What cannot be read is left out: to
// complain about it is the business of the other extension.
func mirroredUpstreams(shoot *gardencorev1beta1.Shoot) map[string]*field.Path {
	mirrored := map[string]*field.Path{}
	for i, extension := range shoot.Spec.Extensions {
		if extension.Type != mirrorExtensionType || isDisabled(extension) {
			continue
		}
		var config mirrorConfig
		if err := json.Unmarshal(providerConfig(shoot, i), &config); err != nil {
			continue
		}
		for j, mirror := range config.Mirrors {
			mirrored[mirror.Upstream] = field.NewPath("spec", "extensions").Index(i).Child("providerConfig", "mirrors").Index(j).Child("upstream")
		}
	}
	return mirrored
}
