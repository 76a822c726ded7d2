// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// While a Shoot is hibernated, its API and its resource manager are away. Nothing changes, nothing fails; afterwards the
// caches are what they were, with what was asked for meanwhile.
func TestHibernation(t *testing.T) {
	t.Parallel()
	const kept, added = "kept.hibernation.example.com", "added.hibernation.example.com"
	l := ownLandscape(t, seedOptions, shootOptions)
	s := l.newShoot(t, "hibernation")
	s.deploy(t, cacheFor(kept))
	s.waitForPods(t, kept)
	before := s.cache(t, kept)
	address := s.status(t)[kept].ClusterIP

	s.setHibernated(t, true)
	l.hibernate(t)
	ex := s.ask(t, cacheFor(kept), cacheFor(added))
	status, resources := ex.Status.ProviderStatus, s.versions(t)
	start := time.Now()
	if err := s.actuator.Reconcile(t.Context(), s.log, ex); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the reconciliation of a hibernated Shoot took %s", took)
	}
	if got := s.extension(t).Status.ProviderStatus; string(got.Raw) != string(status.Raw) {
		t.Errorf("the status changed from %s to %s", status.Raw, got.Raw)
	}
	equalVersions(t, resources, s.versions(t))

	s.setHibernated(t, false)
	l.wakeUp(t)
	if err := s.actuator.Reconcile(t.Context(), s.log, s.extension(t)); err != nil {
		t.Fatal(err)
	}
	after := s.cache(t, kept)
	if got := s.status(t); got[kept].ClusterIP != address || got[added].ClusterIP == "" {
		t.Errorf("got status %+v, want %s for %s", got, address, kept)
	}
	before.requireSame(t, after)
}

// gardenlet wakes up a hibernated Shoot before it deletes it, and starts the resource manager (reconciler_delete.go).
func TestDeleteHibernatedShoot(t *testing.T) {
	t.Parallel()
	const upstream = "deleted.hibernation.example.com"
	l := ownLandscape(t, seedOptions, shootOptions)
	s := l.newShoot(t, "delete-hibernated")
	s.deploy(t, cacheFor(upstream))
	s.waitUntilApplied(t, workloads)
	s.setHibernated(t, true)
	l.hibernate(t)

	l.wakeUp(t)
	s.setShoot(t, map[string]any{"hibernation": map[string]any{"enabled": true}}, map[string]any{"deletionTimestamp": metav1.Now()})
	if err := s.actuator.Delete(t.Context(), s.log, s.extension(t)); err != nil {
		t.Fatal(err)
	}
	if left := s.resources(t); len(left) > 0 {
		t.Errorf("ManagedResources are left: %v", left)
	}
	for _, obj := range []client.Object{&corev1.Service{ObjectMeta: kubeSystem(objectName(upstream))}, &appsv1.StatefulSet{ObjectMeta: kubeSystem(objectName(upstream))}} {
		if s.exists(t, obj) {
			t.Errorf("%T is left", obj)
		}
	}
}

// The extension may be taken out of a Shoot while that is hibernated. gardenlet does not wait for the Extension to go then
// (reconciler_reconcile.go), and nobody should: the objects in the Shoot cannot go before it wakes up.
func TestRemovedWhileHibernated(t *testing.T) {
	t.Parallel()
	const upstream = "removed.hibernation.example.com"
	l := ownLandscape(t, seedOptions, shootOptions)
	s := l.newShoot(t, "removed-hibernated")
	s.deploy(t, cacheFor(upstream))
	s.waitUntilApplied(t, workloads)
	s.setHibernated(t, true)
	l.hibernate(t)

	start := time.Now()
	if err := s.actuator.Delete(t.Context(), s.log, s.extension(t)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	for name, resource := range s.resources(t) {
		if resource.DeletionTimestamp == nil {
			t.Errorf("ManagedResource %s was not asked to go", name)
		}
	}

	// In the meantime the owner has changed his mind. The Extension is a new one.
	s.deleteExtension(t)
	s.setHibernated(t, false)
	l.wakeUp(t)
	s.deploy(t, cacheFor(upstream))
	s.waitUntilApplied(t, workloads)
	service, ok := s.getService(t, objectName(upstream))
	if !ok || service.DeletionTimestamp != nil || service.Spec.ClusterIP != s.status(t)[upstream].ClusterIP {
		t.Errorf("Service exists %t with %s, nodes know %s", ok, service.Spec.ClusterIP, s.status(t)[upstream].ClusterIP)
	}
	for name, resource := range s.resources(t) {
		if resource.DeletionTimestamp != nil {
			t.Errorf("ManagedResource %s is still going", name)
		}
	}
}

func (s *shoot) deleteExtension(t *testing.T) {
	t.Helper()
	if err := s.seed.Client().Delete(t.Context(), s.extension(t)); err != nil {
		t.Fatal(err)
	}
}
