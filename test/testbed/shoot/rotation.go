// SPDX-License-Identifier: Apache-2.0

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
	c, err := connect(cluster)
	if err != nil {
		return err
	}
	return newGarden(c, progress).rotateCAs(ctx, client.ObjectKeyFromObject(shoot), phase)
}

func (g *garden) rotateCAs(ctx context.Context, key client.ObjectKey, phase gardencorev1beta1.CredentialsRotationPhase) error {
	shoot := &gardencorev1beta1.Shoot{}
	if err := g.client.Get(ctx, key, shoot); err != nil {
		return fmt.Errorf("rotating the CAs of Shoot %s: %w", key, err)
	}
	patch := client.MergeFrom(shoot.DeepCopy())
	status := &shoot.Status
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
	g.progress.Printf("Shoot %s: rotation of the CAs: %s", key, phase)
	if err := g.client.Status().Patch(ctx, shoot, patch); err != nil {
		return fmt.Errorf("rotating the CAs of Shoot %s: %w", key, err)
	}
	return nil
}
