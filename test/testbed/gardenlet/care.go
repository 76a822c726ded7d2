// SPDX-License-Identifier: Apache-2.0

package gardenlet

import (
	"context"
	"time"

	v1beta1helper "github.com/gardener/gardener/pkg/api/core/v1beta1/helper"
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	v1beta1constants "github.com/gardener/gardener/pkg/apis/core/v1beta1/constants"
	gardenerutils "github.com/gardener/gardener/pkg/utils/gardener"
	healthchecker "github.com/gardener/gardener/pkg/utils/kubernetes/health/checker"
	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

const (
	// carePeriod is the gardenlet's default (controllers.shootCare.syncPeriod).
	carePeriod = 30 * time.Second
	// progressingThreshold is how long a ManagedResource may be rolled out, the gardenlet's default.
	progressingThreshold = time.Hour
)

// conditionThresholds are the gardenlet's: how long a condition is Progressing before it is False.
func conditionThresholds() map[gardencorev1beta1.ConditionType]time.Duration {
	return map[gardencorev1beta1.ConditionType]time.Duration{
		gardencorev1beta1.ShootAPIServerAvailable:      time.Minute,
		gardencorev1beta1.ShootControlPlaneHealthy:     time.Minute,
		gardencorev1beta1.ShootSystemComponentsHealthy: time.Minute,
		gardencorev1beta1.ShootEveryNodeReady:          5 * time.Minute,
	}
}

// care keeps the conditions of Shoots. A testbed cluster has no components for observability, so that condition of a
// gardenlet is not among them.
type care struct {
	client client.Client
	clock  clock.Clock
	// shootAPIServer is asked whether it is available.
	shootAPIServer rest.Interface
}

// operationEnds passes events after which conditions are likely to be others.
func operationEnds() predicate.Predicate {
	return predicate.Funcs{
		UpdateFunc: func(e event.UpdateEvent) bool {
			before, after := e.ObjectOld.(*gardencorev1beta1.Shoot).Status.LastOperation, e.ObjectNew.(*gardencorev1beta1.Shoot).Status.LastOperation
			return after != nil && (before == nil || before.State != after.State)
		},
		DeleteFunc: func(event.DeleteEvent) bool { return false },
	}
}

// Reconcile brings the conditions up to date and comes back after carePeriod.
func (c *care) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	shoot := &gardencorev1beta1.Shoot{}
	if err := c.client.Get(ctx, request.NamespacedName, shoot); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if shoot.Status.UID == "" {
		return reconcile.Result{}, nil // no operation yet; its end is an event
	}
	ctx, cancel := context.WithTimeout(ctx, carePeriod)
	defer cancel()
	patched := shoot.DeepCopy()
	// Conditions that somebody else has added stay.
	patched.Status.Conditions = v1beta1helper.MergeConditions(shoot.Status.Conditions, c.check(ctx, log.FromContext(ctx), shoot)...)
	if v1beta1helper.ConditionsNeedUpdate(shoot.Status.Conditions, patched.Status.Conditions) {
		if err := c.client.Status().Patch(ctx, patched, client.MergeFrom(shoot)); err != nil {
			return reconcile.Result{}, client.IgnoreNotFound(err)
		}
	}
	return reconcile.Result{RequeueAfter: carePeriod}, client.IgnoreNotFound(c.label(ctx, patched))
}

// label sums the status up for "kubectl get shoot". In Gardener this is up to the gardener-controller-manager.
func (c *care) label(ctx context.Context, shoot *gardencorev1beta1.Shoot) error {
	status := string(gardenerutils.ComputeShootStatus(shoot.Status.LastOperation, shoot.Status.LastErrors, shoot.Status.Conditions...))
	if shoot.Labels[v1beta1constants.ShootStatus] == status {
		return nil
	}
	patch := client.MergeFrom(shoot.DeepCopy())
	metav1.SetMetaDataLabel(&shoot.ObjectMeta, v1beta1constants.ShootStatus, status)
	return c.client.Patch(ctx, shoot, patch)
}

// check returns the conditions in the gardenlet's order.
func (c *care) check(ctx context.Context, log logr.Logger, shoot *gardencorev1beta1.Shoot) []gardencorev1beta1.Condition {
	var conditions []gardencorev1beta1.Condition
	hibernated := v1beta1helper.HibernationIsEnabled(shoot) || shoot.Status.IsHibernated
	run := &checks{
		HealthChecker: healthchecker.NewHealthChecker(log, c.client, c.clock,
			healthchecker.WithConditionThresholds(conditionThresholds()), healthchecker.WithLastOperation(shoot.Status.LastOperation)),
		care: c, log: log, shoot: shoot,
	}
	for _, condition := range []struct {
		conditionType gardencorev1beta1.ConditionType
		check         func(context.Context, gardencorev1beta1.Condition) (*gardencorev1beta1.Condition, error)
	}{
		{gardencorev1beta1.ShootAPIServerAvailable, run.apiServer},
		{gardencorev1beta1.ShootControlPlaneHealthy, run.controlPlane},
		{gardencorev1beta1.ShootEveryNodeReady, run.nodes},
		{gardencorev1beta1.ShootSystemComponentsHealthy, run.systemComponents},
	} {
		old := v1beta1helper.GetOrInitConditionWithClock(c.clock, shoot.Status.Conditions, condition.conditionType)
		if hibernated {
			conditions = append(conditions, v1beta1helper.UpdatedConditionWithClock(c.clock, old, gardencorev1beta1.ConditionTrue, "ConditionNotChecked", "Shoot cluster has been hibernated."))
			continue
		}
		checked, err := condition.check(ctx, old)
		conditions = append(conditions, pardon(c.clock, v1beta1helper.NewConditionOrError(c.clock, old, checked, err), shoot.Status.LastOperation))
	}
	return conditions
}

// pardon takes what is not healthy yet for progress while a Shoot is created or deleted.
func pardon(clock clock.Clock, condition gardencorev1beta1.Condition, last *gardencorev1beta1.LastOperation) gardencorev1beta1.Condition {
	unstable := last == nil || last.State != gardencorev1beta1.LastOperationStateSucceeded &&
		(last.Type == gardencorev1beta1.LastOperationTypeCreate || last.Type == gardencorev1beta1.LastOperationTypeDelete)
	if !unstable || condition.Status != gardencorev1beta1.ConditionFalse {
		return condition
	}
	return v1beta1helper.UpdatedConditionWithClock(clock, condition, gardencorev1beta1.ConditionProgressing, condition.Reason, condition.Message, condition.Codes...)
}
