package shoot

import (
	"context"
	"fmt"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// RotateCAs puts the Shoot that the manifest names into a phase of the rotation of its CAs, as Gardener does before it
// reconciles: RotationPreparing begins one. The next Apply of the manifest tells the extensions.
func RotateCAs(ctx context.Context, cluster *kindcluster.Cluster, progress *workspace.Progress, manifest []byte, phase gardencorev1beta1.CredentialsRotationPhase) error {
	shoot, err := Parse(manifest)
	if err != nil {
		return err
	}
	o, err := newOperation(ctx, cluster, progress, shoot)
	if err != nil {
		return err
	}
	return o.rotateCAs(ctx, phase)
}

func (o *operation) rotateCAs(ctx context.Context, phase gardencorev1beta1.CredentialsRotationPhase) error {
	stored, err := o.stored(ctx)
	if err != nil {
		return err
	}
	if stored == nil {
		return fmt.Errorf("rotating the CAs of shoot %s: it does not exist", client.ObjectKeyFromObject(o.shoot))
	}
	o.shoot = stored
	status := &o.shoot.Status
	if status.Credentials == nil {
		status.Credentials = &gardencorev1beta1.ShootCredentials{}
	}
	if status.Credentials.Rotation == nil {
		status.Credentials.Rotation = &gardencorev1beta1.ShootCredentialsRotation{}
	}
	if status.Credentials.Rotation.CertificateAuthorities == nil {
		status.Credentials.Rotation.CertificateAuthorities = &gardencorev1beta1.CARotation{}
	}
	rotation := status.Credentials.Rotation.CertificateAuthorities
	rotation.Phase = phase
	switch phase {
	case gardencorev1beta1.RotationPreparing:
		rotation.LastInitiationTime = new(metav1.Now())
	case gardencorev1beta1.RotationCompleted:
		rotation.LastCompletionTime = new(metav1.Now())
	}
	o.progress.Printf("Shoot %s: rotation of the CAs: %s", client.ObjectKeyFromObject(o.shoot), phase)
	return o.syncCluster(ctx)
}
