// SPDX-License-Identifier: Apache-2.0

package gardenlet

import (
	"context"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// ApplyToNodes has the nodes apply what the OperatingSystemConfig of the Shoot says now, as a reconciliation does after
// it has written that.
func ApplyToNodes(ctx context.Context, c client.Client, shoot *gardencorev1beta1.Shoot) error {
	o, err := (&reconciler{client: c, interval: 500 * time.Millisecond}).newOperation(ctx, logr.Discard(), shoot)
	if err != nil {
		return err
	}
	if err := o.deployNodeAgentSecret(ctx); err != nil {
		return err
	}
	return o.waitForNodes(ctx)
}

// OperatingSystemConfig returns an empty one with the name of that of the Shoot.
func OperatingSystemConfig(shoot *gardencorev1beta1.Shoot) *extensionsv1alpha1.OperatingSystemConfig {
	return (&operation{namespace: shoot.Status.TechnicalID}).operatingSystemConfig()
}
