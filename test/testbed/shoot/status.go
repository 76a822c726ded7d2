// SPDX-License-Identifier: Apache-2.0

package shoot

import (
	"context"
	"encoding/json"
	"fmt"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

const (
	// registryCache is the type of the extension whose status is part of the Result, and the name of its Extension.
	registryCache = "registry-cache"
	// registryAPIVersion is written out: what the controller reports is checked against the design, not against itself.
	registryAPIVersion = "registry.extensions.gardener.cloud/v1alpha3"
)

// registryStatus reads what the extension registry-cache reports, nil if the Shoot does not have it.
func (g *garden) registryStatus(ctx context.Context, shoot *gardencorev1beta1.Shoot) (*v1alpha3.RegistryStatus, error) {
	if !hasRegistryCache(shoot) {
		return nil, nil
	}
	key := client.ObjectKey{Namespace: shoot.Status.TechnicalID, Name: registryCache}
	extension := &extensionsv1alpha1.Extension{}
	if err := g.client.Get(ctx, key, extension); err != nil {
		return nil, fmt.Errorf("reading Extension %s: %w", key, err)
	}
	return decodeStatus(extension)
}

func hasRegistryCache(shoot *gardencorev1beta1.Shoot) bool {
	for _, extension := range shoot.Spec.Extensions {
		if extension.Type == registryCache {
			return extension.Disabled == nil || !*extension.Disabled
		}
	}
	return false
}

// decodeStatus returns the provider status of an Extension registry-cache.
func decodeStatus(extension *extensionsv1alpha1.Extension) (*v1alpha3.RegistryStatus, error) {
	key := client.ObjectKeyFromObject(extension)
	if extension.Status.ProviderStatus == nil || len(extension.Status.ProviderStatus.Raw) == 0 {
		return nil, fmt.Errorf("extension %s is ready and has no status.providerStatus", key)
	}
	status := &v1alpha3.RegistryStatus{}
	if err := json.Unmarshal(extension.Status.ProviderStatus.Raw, status); err != nil {
		return nil, fmt.Errorf("decoding status.providerStatus of extension %s: %w", key, err)
	}
	if status.APIVersion != registryAPIVersion || status.Kind != "RegistryStatus" {
		return nil, fmt.Errorf("status.providerStatus of extension %s is %s %s, want %s RegistryStatus", key, status.APIVersion, status.Kind, registryAPIVersion)
	}
	return status, nil
}
