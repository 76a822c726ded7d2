// SPDX-License-Identifier: Apache-2.0

package gardenlet

import (
	"testing"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestIsDue(t *testing.T) {
	t.Parallel()
	make := func(observed int64, operationType gardencorev1beta1.LastOperationType, state gardencorev1beta1.LastOperationState) *gardencorev1beta1.Shoot {
		shoot := &gardencorev1beta1.Shoot{}
		shoot.Generation, shoot.Finalizers = 2, []string{"gardener"}
		shoot.Status.ObservedGeneration = observed
		shoot.Status.LastOperation = &gardencorev1beta1.LastOperation{Type: operationType, State: state}
		return shoot
	}
	deleted := func(shoot *gardencorev1beta1.Shoot) *gardencorev1beta1.Shoot {
		shoot.DeletionTimestamp = new(metav1.NewTime(time.Now()))
		return shoot
	}
	fresh := &gardencorev1beta1.Shoot{}
	fresh.Generation = 1
	foreign := deleted(make(1, "Create", "Succeeded"))
	foreign.Finalizers = []string{"somebody-elses"}
	for _, tc := range []struct {
		name  string
		shoot *gardencorev1beta1.Shoot
		want  bool
	}{
		{"new", fresh, true},
		{"succeeded", make(2, "Reconcile", "Succeeded"), false},
		{"changed since", make(1, "Reconcile", "Succeeded"), true},
		{"interrupted", make(2, "Reconcile", "Processing"), true},
		{"error", make(2, "Reconcile", "Error"), true},
		{"failed", make(2, "Reconcile", "Failed"), false},
		{"failed, changed since", make(1, "Reconcile", "Failed"), true},
		{"deleted", deleted(make(1, "Reconcile", "Succeeded")), true},
		{"deletion failed", deleted(make(2, "Delete", "Failed")), false},
		{"deletion succeeded, finalizer left", deleted(make(2, "Delete", "Succeeded")), true},
		{"deleted, only somebody else's finalizer left", foreign, false},
	} {
		if got := isDue(tc.shoot); got != tc.want {
			t.Errorf("%s: isDue is %t, want %t", tc.name, got, tc.want)
		}
	}
}
