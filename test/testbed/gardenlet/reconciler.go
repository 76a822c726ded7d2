// SPDX-License-Identifier: Apache-2.0

package gardenlet

import (
	"context"
	"fmt"
	"time"

	v1beta1helper "github.com/gardener/gardener/pkg/api/core/v1beta1/helper"
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	"github.com/gardener/gardener/pkg/controllerutils"
	gardenerutils "github.com/gardener/gardener/pkg/utils/gardener"
	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// reconciler runs operations.
type reconciler struct {
	client   client.Client
	options  Options
	interval time.Duration
}

// Reconcile runs the operation that the Shoot waits for, if there is one.
func (r *reconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	log := log.FromContext(ctx)
	shoot := &gardencorev1beta1.Shoot{}
	if err := r.client.Get(ctx, request.NamespacedName, shoot); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if !isDue(shoot) {
		return reconcile.Result{}, nil
	}
	if shoot.DeletionTimestamp == nil && !controllerutil.ContainsFinalizer(shoot, gardencorev1beta1.GardenerName) {
		if err := controllerutils.AddFinalizers(ctx, r.client, shoot, gardencorev1beta1.GardenerName); err != nil {
			return reconcile.Result{}, fmt.Errorf("adding the finalizer to Shoot %s: %w", request, err)
		}
	}
	o, err := r.newOperation(ctx, log, shoot)
	if err != nil {
		return reconcile.Result{}, err
	}
	if shoot.DeletionTimestamp != nil {
		err = o.delete(ctx)
	} else {
		err = o.reconcile(ctx)
	}
	if v1beta1helper.HasNonRetryableErrorCode(o.shoot.Status.LastErrors...) {
		err = reconcile.TerminalError(err)
	}
	return reconcile.Result{}, err
}

// isDue tells whether there is something to do for a Shoot: its spec has changed, Gardener's API server has raised its
// generation because of the annotation gardener.cloud/operation or a deletion, or the last operation has not come to
// its end.
func isDue(shoot *gardencorev1beta1.Shoot) bool {
	if shoot.DeletionTimestamp != nil && !controllerutil.ContainsFinalizer(shoot, gardencorev1beta1.GardenerName) {
		return false
	}
	last := shoot.Status.LastOperation
	if last == nil || shoot.Status.ObservedGeneration != shoot.Generation {
		return true
	}
	if shoot.DeletionTimestamp != nil {
		// What is left to do after a successful deletion is to remove the finalizer.
		return last.State != gardencorev1beta1.LastOperationStateFailed
	}
	return last.State != gardencorev1beta1.LastOperationStateSucceeded && last.State != gardencorev1beta1.LastOperationStateFailed
}

func (r *reconciler) newOperation(ctx context.Context, log logr.Logger, shoot *gardencorev1beta1.Shoot) (*operation, error) {
	namespace := shoot.Status.TechnicalID
	if namespace == "" {
		project, _, err := gardenerutils.ProjectAndNamespaceFromReader(ctx, r.client, shoot.Namespace)
		if err != nil {
			return nil, fmt.Errorf("reading the project of namespace %s: %w", shoot.Namespace, err)
		}
		if project == nil {
			return nil, fmt.Errorf("namespace %s belongs to no project", shoot.Namespace)
		}
		namespace = gardenerutils.ComputeTechnicalID(project.Name, shoot)
	}
	profile, err := gardenerutils.GetCloudProfile(ctx, r.client, shoot)
	if err != nil {
		return nil, fmt.Errorf("reading the CloudProfile of Shoot %s: %w", client.ObjectKeyFromObject(shoot), err)
	}
	return &operation{
		client: r.client, log: log, options: r.options, shoot: shoot, cloudProfile: profile, namespace: namespace, interval: r.interval,
	}, nil
}
