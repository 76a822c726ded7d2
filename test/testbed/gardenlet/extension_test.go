// SPDX-License-Identifier: Apache-2.0

package gardenlet

import (
	"testing"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestHasFailedCountsOnlyTheLatestOrder(t *testing.T) {
	t.Parallel()
	ordered := time.Date(2026, 1, 2, 3, 4, 5, 600_000_000, time.UTC)
	make := func(change func(*extensionsv1alpha1.Extension)) *extensionsv1alpha1.Extension {
		extension := &extensionsv1alpha1.Extension{}
		extension.Generation = 2
		extension.Annotations = map[string]string{"gardener.cloud/timestamp": ordered.Format(time.RFC3339Nano)}
		extension.Status.ObservedGeneration = 2
		extension.Status.LastError = &gardencorev1beta1.LastError{Description: "broken"}
		extension.Status.LastOperation = &gardencorev1beta1.LastOperation{State: gardencorev1beta1.LastOperationStateError, LastUpdateTime: metav1.NewTime(ordered.Truncate(time.Second))}
		change(extension)
		return extension
	}
	for _, tc := range []struct {
		name   string
		change func(*extensionsv1alpha1.Extension)
		want   bool
	}{
		{"failed", func(*extensionsv1alpha1.Extension) {}, true},
		{"no error", func(e *extensionsv1alpha1.Extension) { e.Status.LastError = nil }, false},
		{"of the last order", func(e *extensionsv1alpha1.Extension) {
			e.Status.LastOperation.LastUpdateTime = metav1.NewTime(ordered.Add(-time.Second))
		}, false},
		{"order not seen", func(e *extensionsv1alpha1.Extension) { e.Annotations["gardener.cloud/operation"] = "reconcile" }, false},
		{"of an older generation", func(e *extensionsv1alpha1.Extension) { e.Status.ObservedGeneration = 1 }, false},
		{"being worked on", func(e *extensionsv1alpha1.Extension) {
			e.Status.LastOperation.State = gardencorev1beta1.LastOperationStateProcessing
		}, false},
	} {
		if got := hasFailed(make(tc.change)); got != tc.want {
			t.Errorf("%s: hasFailed is %t, want %t", tc.name, got, tc.want)
		}
	}
}
