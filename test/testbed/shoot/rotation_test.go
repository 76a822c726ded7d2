// SPDX-License-Identifier: Apache-2.0

package shoot

import (
	"testing"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func TestRotationSurvivesReconciliations(t *testing.T) {
	t.Parallel()
	l := newLandscape()
	key := client.ObjectKey{Namespace: "garden-dev", Name: "crazy-botany"}
	if err := l.rotateCAs(t.Context(), key, gardencorev1beta1.RotationPreparing); !apierrors.IsNotFound(err) {
		t.Errorf("rotating the CAs of a Shoot that does not exist: %v", err)
	}
	if _, err := l.applyManifest(t, documented); err != nil {
		t.Fatal(err)
	}
	var initiated string
	for _, phase := range []gardencorev1beta1.CredentialsRotationPhase{
		gardencorev1beta1.RotationPreparing, gardencorev1beta1.RotationPrepared, gardencorev1beta1.RotationCompleting, gardencorev1beta1.RotationCompleted,
	} {
		if err := l.rotateCAs(t.Context(), key, phase); err != nil {
			t.Fatal(err)
		}
		if _, err := l.applyManifest(t, documented); err != nil {
			t.Fatal(err)
		}
		got := l.stored(t).Status.Credentials.Rotation.CertificateAuthorities
		if got.Phase != phase || got.LastInitiationTime == nil {
			t.Fatalf("the rotation is %+v in phase %s", got, phase)
		}
		if initiated == "" {
			initiated = got.LastInitiationTime.String()
		}
		if got.LastInitiationTime.String() != initiated {
			t.Errorf("%s: initiated at %s, want %s", phase, got.LastInitiationTime, initiated)
		}
		if (got.LastCompletionTime != nil) != (phase == gardencorev1beta1.RotationCompleted) {
			t.Errorf("%s: completed at %v", phase, got.LastCompletionTime)
		}
	}
}
