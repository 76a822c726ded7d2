package shoot

import (
	"testing"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	"github.com/gardener/gardener/pkg/extensions"
)

func TestRotationSurvivesReconciliations(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	if err := s.operation(documented).rotateCAs(t.Context(), gardencorev1beta1.RotationPreparing); err == nil {
		t.Error("a Shoot that does not exist was rotated")
	}
	s.reconcile(t, documented)
	rotation := func() *gardencorev1beta1.CARotation {
		cluster, err := extensions.GetCluster(t.Context(), s, shootNamespace)
		if err != nil {
			t.Fatal(err)
		}
		return cluster.Shoot.Status.Credentials.Rotation.CertificateAuthorities
	}
	var initiated string
	for _, phase := range []gardencorev1beta1.CredentialsRotationPhase{
		gardencorev1beta1.RotationPreparing, gardencorev1beta1.RotationPrepared, gardencorev1beta1.RotationCompleting, gardencorev1beta1.RotationCompleted,
	} {
		if err := s.operation(documented).rotateCAs(t.Context(), phase); err != nil {
			t.Fatal(err)
		}
		s.reconcile(t, documented)
		got := rotation()
		if got.Phase != phase || got.LastInitiationTime == nil {
			t.Fatalf("the extensions see %+v in phase %s", got, phase)
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
