// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/gardener/gardener/pkg/client/kubernetes"
	"github.com/gardener/gardener/pkg/utils/kubernetes/health"
	"github.com/gardener/gardener/pkg/utils/managedresources"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/pkg/apis/registry"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

// decode is the configuration of caches with its defaults.
func decode(t *testing.T, caches ...map[string]any) []v1alpha3.RegistryCache {
	t.Helper()
	raw, err := json.Marshal(map[string]any{"apiVersion": "registry.extensions.gardener.cloud/v1alpha3", "kind": "RegistryConfig", "caches": caches})
	if err != nil {
		t.Fatal(err)
	}
	config, errs := registry.Decode(raw, field.NewPath("providerConfig"))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	return config.Caches
}

// writeResource writes a ManagedResource as the extension does, with any content.
func (s *shoot) writeResource(t *testing.T, name string, objects ...client.Object) error {
	t.Helper()
	data, err := managedresources.NewRegistry(kubernetes.ShootScheme, kubernetes.ShootCodec, kubernetes.ShootSerializer).AddAllAndSerialize(objects...)
	if err != nil {
		return err
	}
	secretName, secret := managedresources.NewSecret(s.seed.Client(), s.namespace, name, data, true)
	if err := secret.Reconcile(t.Context()); err != nil {
		return err
	}
	return managedresources.NewForShoot(s.seed.Client(), s.namespace, name, "registry-cache", false).WithSecretRef(secretName).
		DeletePersistentVolumeClaims(true).Reconcile(t.Context())
}

// waitUntilApplied waits until the resource manager has applied the latest version of a ManagedResource.
func (s *shoot) waitUntilApplied(t *testing.T, name string) {
	t.Helper()
	eventually(t, soon, func() error {
		resource, ok := s.resources(t)[name]
		if !ok {
			return fmt.Errorf("no ManagedResource %s", name)
		}
		return health.CheckManagedResourceApplied(&resource)
	})
}
