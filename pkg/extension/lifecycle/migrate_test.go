// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"testing"

	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A Shoot moves to another Seed: the old one lets go of everything, the new one takes it over as it is.
func TestMigration(t *testing.T) {
	t.Parallel()
	const upstream = "migration.example.com"
	// The other Seed is another namespace: what was in the old one is not known there.
	from, to := sharedLandscape(t).newShoot(t, "migration-from"), sharedLandscape(t).newShoot(t, "migration-to")
	from.deploy(t, cacheFor(upstream))
	from.waitForPods(t, upstream)
	before := from.cache(t, upstream)
	config := from.extension(t).Spec

	if err := from.actuator.Migrate(t.Context(), from.log, from.extension(t)); err != nil {
		t.Fatal(err)
	}
	if err := from.none(t); err != nil {
		t.Error(err)
	}
	before.requireSame(t, from.cache(t, upstream))

	to.create(t, &extensionsv1alpha1.Extension{ObjectMeta: metav1.ObjectMeta{Namespace: to.namespace, Name: "registry-cache"}, Spec: config})
	if err := to.actuator.Restore(t.Context(), to.log, to.extension(t)); err != nil {
		t.Fatal(err)
	}
	to.requireDeployed(t, cacheFor(upstream))
	before.requireSame(t, to.cache(t, upstream))
	if got := to.status(t)[upstream].ClusterIP; got != before.address {
		t.Errorf("nodes are told %s, want %s", got, before.address)
	}

	// The new Seed is in charge: a deletion is repaired, with the same address.
	service, _ := to.getService(t, objectName(upstream))
	to.deleteService(t, service)
	if again, _ := to.waitForService(t, repairTime, service.Name, service.UID); again.Spec.ClusterIP != before.address {
		t.Errorf("the Service came back with %s, want %s", again.Spec.ClusterIP, before.address)
	}
}
