// SPDX-License-Identifier: Apache-2.0

package gardenlet

import (
	"context"
	"fmt"

	v1beta1helper "github.com/gardener/gardener/pkg/api/core/v1beta1/helper"
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"github.com/gardener/gardener/pkg/controllerutils"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// WaitForNodes is the task ID of the last error when nodes have not applied their configuration. The journals of their
// agents tell why.
const WaitForNodes = "Waiting until all shoot worker nodes have updated the operating system config"

// reconcile is the gardenlet's reconcile flow. Of a hibernated Shoot the nodes are left out.
func (o *operation) reconcile(ctx context.Context) error {
	operationType := v1beta1helper.ComputeOperationType(o.shoot.ObjectMeta, o.shoot.Status.LastOperation)
	if err := o.check(ctx); err != nil {
		// Before anything is written for it: the Cluster of another Shoot is what the extensions work with.
		if failErr := o.fail(ctx, operationType, 0, "Checking the Shoot", err); failErr != nil {
			return failErr
		}
		return err
	}
	if err := o.run(ctx, operationType, o.reconcileTasks()); err != nil {
		return err
	}
	if err := o.report(ctx, operationType, gardencorev1beta1.LastOperationStateSucceeded, 100, "Shoot cluster has been successfully reconciled."); err != nil {
		return err
	}
	return o.syncCluster(ctx)
}

func (o *operation) reconcileTasks() []task {
	hibernated := v1beta1helper.HibernationIsEnabled(o.shoot)
	deploy, wait := "Deploying extension resources", "Waiting until extension resources are ready"
	if hibernated {
		deploy, wait = "Hibernating extension resources", "Waiting until hibernated extension resources are ready"
	}
	tasks := []task{
		{"Deploying Shoot namespace in Seed", o.deployNamespace},
		{"Deploying referenced resources", o.deployReferencedResources},
		{"Deploying the kubeconfig of the Shoot", o.deployKubeconfig},
		{deploy, o.deployExtensions},
		{wait, o.waitForExtensions},
		{"Deleting stale extension resources", func(ctx context.Context) error { return o.deleteExtensions(ctx, o.wantedExtensions()) }},
		{"Deploying operating system specific configuration for shoot workers", o.deployOperatingSystemConfig},
	}
	if hibernated {
		return tasks
	}
	return append(tasks,
		task{"Deploying managed resources for the gardener-node-agent", o.deployNodeAgentSecret},
		task{WaitForNodes, o.waitForNodes},
	)
}

// delete is the gardenlet's delete flow, with one difference: there the nodes go before the extensions. Here they
// stay, so what an extension made them apply is taken back after it is gone, as when an owner removes it from a Shoot.
func (o *operation) delete(ctx context.Context) error {
	// Without a UID no operation has ever begun, so there is nothing to clean up.
	if o.shoot.Status.UID != "" {
		if err := o.run(ctx, gardencorev1beta1.LastOperationTypeDelete, []task{
			{"Deleting extension resources", func(ctx context.Context) error { return o.deleteExtensions(ctx, nil) }},
			{"Taking the configuration back from shoot worker nodes", o.resetNodes},
			{"Deleting managed resources", o.deleteNodeAgentSecret},
			{"Deleting shoot namespace in Seed", o.deleteNamespace},
			{"Deleting the Cluster resource", o.deleteCluster},
		}); err != nil {
			return err
		}
	}
	// The API server lets the finalizer go only after this report.
	if err := o.report(ctx, gardencorev1beta1.LastOperationTypeDelete, gardencorev1beta1.LastOperationStateSucceeded, 100, "Shoot cluster has been successfully deleted."); err != nil {
		return err
	}
	// Whoever cares for the conditions may write at the same time.
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		shoot := &gardencorev1beta1.Shoot{}
		if err := o.client.Get(ctx, client.ObjectKeyFromObject(o.shoot), shoot); err != nil {
			return client.IgnoreNotFound(err)
		}
		return controllerutils.RemoveFinalizers(ctx, o.client, shoot, gardencorev1beta1.GardenerName)
	})
	if err != nil {
		return fmt.Errorf("removing the finalizer of Shoot %s: %w", client.ObjectKeyFromObject(o.shoot), err)
	}
	return nil
}

// check refuses Shoots that this cluster cannot be.
func (o *operation) check(ctx context.Context) error {
	if err := checkSpec(&o.shoot.Spec).ToAggregate(); err != nil {
		return v1beta1helper.NewErrorWithCodes(err, gardencorev1beta1.ErrorConfigurationProblem)
	}
	clusters := &extensionsv1alpha1.ClusterList{}
	if err := o.client.List(ctx, clusters); err != nil {
		return fmt.Errorf("listing Clusters: %w", err)
	}
	for _, cluster := range clusters.Items {
		if cluster.Name != o.namespace {
			return fmt.Errorf("the nodes belong to the Shoot in namespace %s: delete that one first", cluster.Name)
		}
	}
	return nil
}

// checkSpec names what Gardener accepts and a testbed cluster does not have.
func checkSpec(spec *gardencorev1beta1.ShootSpec) field.ErrorList {
	var errs field.ErrorList
	path := field.NewPath("spec")
	if workers := spec.Provider.Workers; len(workers) != 1 {
		errs = append(errs, field.Invalid(path.Child("provider", "workers"), len(workers), "the nodes of a testbed cluster are one worker pool"))
	}
	for i, resource := range spec.Resources {
		if ref := resource.ResourceRef; ref.Kind != "Secret" || ref.APIVersion != "v1" {
			errs = append(errs, field.NotSupported(path.Child("resources").Index(i).Child("resourceRef", "kind"), ref.Kind, []string{"Secret"}))
		}
	}
	return errs
}
