// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"fmt"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// requireDeployed checks that there are exactly these caches, in the Seed, in the status and in the Shoot.
func (s *shoot) requireDeployed(t *testing.T, caches ...map[string]any) {
	t.Helper()
	s.waitUntilApplied(t, workloads)
	status, resources := s.status(t), s.resources(t)
	if len(status) != len(caches) || len(resources) != len(caches)+1 {
		t.Errorf("%s: %d caches in the status and %d ManagedResources for %d caches", s.namespace, len(status), len(resources), len(caches))
	}
	for _, cache := range decode(t, caches...) {
		service, ok := s.getService(t, cache.ServiceName())
		if !ok || service.Spec.ClusterIP == "" || service.Spec.ClusterIP != status[cache.Upstream].ClusterIP {
			t.Errorf("%s: the Service of %s exists %t with %q, nodes know %q", s.namespace, cache.Upstream, ok, service.Spec.ClusterIP, status[cache.Upstream].ClusterIP)
		}
		eventually(t, soon, func() error {
			set := &appsv1.StatefulSet{ObjectMeta: kubeSystem(cache.ObjectName())}
			if !s.exists(t, set) {
				return fmt.Errorf("%s: no StatefulSet for %s", s.namespace, cache.Upstream)
			}
			// The status tells of it.
			if !s.exists(t, &corev1.PersistentVolumeClaim{ObjectMeta: kubeSystem("cache-volume-" + cache.ObjectName() + "-0")}) {
				return fmt.Errorf("%s: no claim for %s", s.namespace, cache.Upstream)
			}
			if got := set.Spec.VolumeClaimTemplates[0].Spec.Resources.Requests.Storage(); got.Cmp(*cache.Volume.Size) != 0 {
				return fmt.Errorf("%s: volumes of %s get %s, want %s", s.namespace, cache.Upstream, got, cache.Volume.Size)
			}
			return nil
		})
		for _, obj := range []client.Object{&networkingv1.NetworkPolicy{ObjectMeta: kubeSystem(cache.ObjectName())}, &corev1.Secret{ObjectMeta: kubeSystem(cache.ObjectName() + "-config")}} {
			if !s.exists(t, obj) {
				t.Errorf("%s: no %T for %s", s.namespace, obj, cache.Upstream)
			}
		}
		pinned := resources["extension-registry-cache-service-"+cache.ServiceName()]
		if pinned.DeletionTimestamp != nil || len(pinned.Spec.SecretRefs) != 1 {
			t.Errorf("%s: ManagedResource %q of %s: %v", s.namespace, pinned.Name, cache.Upstream, pinned.Spec)
		}
	}
}

func (s *shoot) none(t *testing.T) error {
	t.Helper()
	if left := s.resources(t); len(left) > 0 {
		return fmt.Errorf("%s: %d ManagedResources are left", s.namespace, len(left))
	}
	return nil
}

// requireGone checks that nothing is left in the Seed, and that the objects in the Shoot were kept or not.
func (s *shoot) requireGone(t *testing.T, kept bool, caches ...map[string]any) {
	t.Helper()
	if err := s.none(t); err != nil {
		t.Error(err)
	}
	secrets := &corev1.SecretList{}
	if err := s.seed.Client().List(t.Context(), secrets, client.InNamespace(s.namespace)); err != nil {
		t.Fatal(err)
	}
	for _, secret := range secrets.Items {
		if kept && secret.Labels["managed-by"] == "secrets-manager" {
			continue // gardenlet takes the CA to the other Seed, and then deletes the namespace
		}
		if secret.Name != "gardener-internal" && secret.DeletionTimestamp == nil && secret.Labels["resources.gardener.cloud/garbage-collectable-reference"] != "true" {
			t.Errorf("%s: Secret %s is left, and nobody collects it", s.namespace, secret.Name)
		}
	}
	for _, cache := range decode(t, caches...) {
		for _, obj := range []client.Object{
			&corev1.Service{ObjectMeta: kubeSystem(cache.ServiceName())},
			&appsv1.StatefulSet{ObjectMeta: kubeSystem(cache.ObjectName())},
			&corev1.Secret{ObjectMeta: kubeSystem(cache.ObjectName() + "-config")},
		} {
			if s.exists(t, obj) != kept {
				t.Errorf("%s: %T of %s: kept %t, want %t", s.namespace, obj, cache.Upstream, !kept, kept)
			}
		}
	}
}

// moveToAnotherSeed does what gardenlet and a migration do: nothing of the extension is left in this namespace, and the
// Extension is a new one without a status. The objects in the Shoot are those that the other Seed has deployed.
func (s *shoot) moveToAnotherSeed(t *testing.T) {
	t.Helper()
	old := s.extension(t)
	if err := s.actuator.Migrate(t.Context(), s.log, old); err != nil {
		t.Fatal(err)
	}
	if err := s.seed.Client().Delete(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	s.create(t, &extensionsv1alpha1.Extension{ObjectMeta: metav1.ObjectMeta{Namespace: old.Namespace, Name: old.Name}, Spec: old.Spec})
}

// remove ends what a test has made, so that the next one finds room. It does not wait.
func (s *shoot) remove(t *testing.T) {
	t.Helper()
	if err := s.actuator.ForceDelete(t.Context(), s.log, s.extension(t)); err != nil {
		t.Error(err)
	}
}
