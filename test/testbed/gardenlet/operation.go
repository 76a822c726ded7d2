// SPDX-License-Identifier: Apache-2.0

package gardenlet

import (
	"context"
	"fmt"
	"strings"
	"time"

	v1beta1helper "github.com/gardener/gardener/pkg/api/core/v1beta1/helper"
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"github.com/gardener/gardener/pkg/extensions"
	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// local is the name of everything that Gardener wants named and that is this machine: the infrastructure provider, its
// region and the Seed.
const local = "local"

// operation is one run of the gardenlet's flow for a Shoot.
type operation struct {
	// client is for garden, seed and shoot. It has no cache: the flow reads what it has just written.
	client  client.Client
	log     logr.Logger
	options Options
	// shoot is as it was when the operation began, with the status of now.
	shoot        *gardencorev1beta1.Shoot
	cloudProfile *gardencorev1beta1.CloudProfile
	// namespace is the Shoot's technical ID.
	namespace string
	// interval is how often a state is looked at.
	interval time.Duration
}

// task is a step of a flow.
type task struct {
	name string
	do   func(context.Context) error
}

// run runs the tasks in order until one fails, and keeps the Shoot's last operation up to date, at its start and its end
// also in the Cluster. When ctx ends, the Shoot stays in the state Processing, which the next process goes on from.
func (o *operation) run(ctx context.Context, operationType gardencorev1beta1.LastOperationType, tasks []task) error {
	log := o.log.WithValues("operation", strings.ToLower(string(operationType)))
	start := time.Now()
	log.Info("Starting", "generation", o.shoot.Generation)
	for i, task := range tasks {
		progress := int32(100 * i / len(tasks))
		if err := o.report(ctx, operationType, gardencorev1beta1.LastOperationStateProcessing, progress, task.name); err != nil {
			return err
		}
		if i == 0 {
			if err := o.syncCluster(ctx); err != nil {
				return err
			}
		}
		taskStart := time.Now()
		if err := task.do(ctx); err != nil {
			if ctx.Err() != nil {
				return err
			}
			if failErr := o.fail(ctx, operationType, progress, task.name, err); failErr != nil {
				return failErr
			}
			if syncErr := o.syncCluster(ctx); syncErr != nil {
				log.Error(syncErr, "Could not tell the extensions of the failure")
			}
			return fmt.Errorf("%s: %w", task.name, err)
		}
		log.Info("Task done", "task", task.name, "seconds", time.Since(taskStart).Seconds())
	}
	log.Info("Succeeded", "seconds", time.Since(start).Seconds())
	return nil
}

// report writes the state of the operation, and what identifies the Shoot, into its status. Of the other fields of the
// status none is touched.
func (o *operation) report(ctx context.Context, operationType gardencorev1beta1.LastOperationType, state gardencorev1beta1.LastOperationState, progress int32, description string) error {
	return o.patchStatus(ctx, func(status *gardencorev1beta1.ShootStatus) {
		// Both are immutable once they are set.
		if status.UID == "" {
			status.UID = uuid.NewUUID()
		}
		if status.TechnicalID == "" {
			status.TechnicalID = o.namespace
		}
		status.Gardener = gardencorev1beta1.Gardener{ID: "gardenlet", Name: "gardenlet", Version: o.options.Version}
		status.ObservedGeneration = o.shoot.Generation
		status.LastOperation = &gardencorev1beta1.LastOperation{Type: operationType, State: state, Progress: progress, Description: description, LastUpdateTime: metav1.Now()}
		if state == gardencorev1beta1.LastOperationStateSucceeded {
			status.LastErrors = nil
			status.IsHibernated = v1beta1helper.HibernationIsEnabled(o.shoot)
		}
	})
}

// fail writes the reason of a failure into the Shoot's status. An error that only the owner can correct makes the
// operation Failed, any other Error, which is tried again.
func (o *operation) fail(ctx context.Context, operationType gardencorev1beta1.LastOperationType, progress int32, taskID string, reason error) error {
	lastError := *v1beta1helper.LastErrorWithTaskID(reason.Error(), taskID, v1beta1helper.ExtractErrorCodes(reason)...)
	state := gardencorev1beta1.LastOperationStateError
	if v1beta1helper.HasNonRetryableErrorCode(lastError) {
		state = gardencorev1beta1.LastOperationStateFailed
	}
	return o.patchStatus(ctx, func(status *gardencorev1beta1.ShootStatus) {
		status.ObservedGeneration = o.shoot.Generation
		status.LastErrors = []gardencorev1beta1.LastError{lastError}
		status.LastOperation = &gardencorev1beta1.LastOperation{Type: operationType, State: state, Progress: progress, Description: reason.Error(), LastUpdateTime: metav1.Now()}
	})
}

// patchStatus sends what change changes, and nothing else. Of the answer only the status is taken over: what has become
// of the spec meanwhile is for the next operation.
func (o *operation) patchStatus(ctx context.Context, change func(*gardencorev1beta1.ShootStatus)) error {
	patched := o.shoot.DeepCopy()
	change(&patched.Status)
	if err := o.client.Status().Patch(ctx, patched, client.MergeFrom(o.shoot)); err != nil {
		return fmt.Errorf("writing the status of Shoot %s: %w", client.ObjectKeyFromObject(o.shoot), err)
	}
	o.shoot.Status = patched.Status
	return nil
}

// syncCluster tells the extensions what the Shoot is now, with its status. There is no Seed in the garden, so its name
// is only in here.
func (o *operation) syncCluster(ctx context.Context) error {
	shoot := o.shoot.DeepCopy()
	shoot.Spec.SeedName, shoot.Status.SeedName = new(local), new(local)
	seed := &gardencorev1beta1.Seed{
		ObjectMeta: metav1.ObjectMeta{Name: local},
		Spec:       gardencorev1beta1.SeedSpec{Provider: gardencorev1beta1.SeedProvider{Type: local, Region: local}},
	}
	if err := extensions.SyncClusterResourceToSeed(ctx, o.client, o.namespace, shoot, o.cloudProfile, seed); err != nil {
		return fmt.Errorf("writing Cluster %s: %w", o.namespace, err)
	}
	return nil
}

func (o *operation) deleteCluster(ctx context.Context) error {
	return client.IgnoreNotFound(o.client.Delete(ctx, &extensionsv1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: o.namespace}}))
}
