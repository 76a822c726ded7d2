// SPDX-License-Identifier: Apache-2.0

package lifecycle

import "testing"

func TestReconcile(t *testing.T) {
	t.Parallel()
	s := sharedLandscape(t).newShoot(t, "reconcile")
	s.deploy(t, cacheFor("reconcile.example.com"))
	s.waitForPods(t, "reconcile.example.com")
	service, ok := s.getService(t, objectName("reconcile.example.com"))
	if !ok || service.Spec.ClusterIP != s.status(t)["reconcile.example.com"].ClusterIP {
		t.Errorf("the Service has address %q, the status %+v", service.Spec.ClusterIP, s.status(t))
	}
}
