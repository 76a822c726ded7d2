// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"context"
	"fmt"
	"strings"

	v1beta1helper "github.com/gardener/gardener/pkg/api/core/v1beta1/helper"
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
	"github.com/gardener/gardener/pkg/client/kubernetes"
	"github.com/gardener/gardener/pkg/utils/kubernetes/health"
	"github.com/gardener/gardener/pkg/utils/managedresources"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/extension/desired"
)

const (
	// workloadsResourceName is the ManagedResource of all that is no Service.
	workloadsResourceName = "extension-registry-cache"
	// serviceResourcePrefix and the name of a Service make the name of that Service's ManagedResource.
	serviceResourcePrefix = workloadsResourceName + "-service-"
	// origin is the value of the label by which the ManagedResources of the extension are told from all others.
	origin = "registry-cache"
)

// ManagedResourceLabels are the labels of all ManagedResources of the extension, and of no others.
func ManagedResourceLabels() map[string]string {
	return map[string]string{managedresources.LabelKeyOrigin: origin}
}

func serviceResourceName(cache v1alpha3.RegistryCache) string {
	return serviceResourcePrefix + cache.ServiceName()
}

func (a *Actuator) deployService(ctx context.Context, namespace string, cache v1alpha3.RegistryCache, address string) error {
	return a.deploy(ctx, namespace, serviceResourceName(cache), []client.Object{desired.Service(cache, address)})
}

func (a *Actuator) deployWorkloads(ctx context.Context, namespace string, shoot *gardencorev1beta1.Shoot, config *v1alpha3.RegistryConfig, secrets map[string]desired.Secrets, volumes map[string]volumeReport) error {
	var objects []client.Object
	for _, cache := range config.Caches {
		size := contentSize(cache, volumes[cache.Upstream].size)
		workload, err := desired.Workload(cache, size, secrets[cache.Upstream], a.options)
		if err != nil {
			return err
		}
		objects = append(objects, workload...)
		if v1beta1helper.ShootWantsVerticalPodAutoscaler(shoot) {
			objects = append(objects, desired.VerticalPodAutoscaler(cache))
		}
	}
	return a.deploy(ctx, namespace, workloadsResourceName, objects)
}

// deploy writes a ManagedResource with objects. One of the same name that is being deleted is waited for: what is written
// into it would go with it, objects that are there at this moment included.
func (a *Actuator) deploy(ctx context.Context, namespace, name string, objects []client.Object) error {
	if err := a.waitUntilNotLeaving(ctx, namespace, name); err != nil {
		return err
	}
	data, err := managedresources.NewRegistry(kubernetes.ShootScheme, kubernetes.ShootCodec, kubernetes.ShootSerializer).AddAllAndSerialize(objects...)
	if err != nil {
		return fmt.Errorf("encoding the objects of ManagedResource %s/%s: %w", namespace, name, err)
	}
	secretName, secret := managedresources.NewSecret(a.seed, namespace, name, data, true)
	if err := secret.Reconcile(ctx); err != nil {
		return fmt.Errorf("writing Secret %s/%s: %w", namespace, secretName, err)
	}
	resource := managedresources.NewForShoot(a.seed, namespace, name, origin, false).
		WithSecretRef(secretName).
		// A cache that comes back after its removal starts with an empty volume of the size that is then asked for.
		DeletePersistentVolumeClaims(true)
	// The resource manager writes to it as well, its finalizer among others.
	if err := retry.RetryOnConflict(retry.DefaultBackoff, func() error { return resource.Reconcile(ctx) }); err != nil {
		return fmt.Errorf("writing ManagedResource %s/%s: %w", namespace, name, err)
	}
	return nil
}

func (a *Actuator) waitUntilNotLeaving(ctx context.Context, namespace, name string) error {
	return a.wait(ctx, fmt.Sprintf("the earlier ManagedResource %s/%s to be gone", namespace, name), func(ctx context.Context) (string, error) {
		resource := &resourcesv1alpha1.ManagedResource{}
		err := a.seed.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, resource)
		if apierrors.IsNotFound(err) || err == nil && resource.DeletionTimestamp == nil {
			return "", nil
		}
		return appliedMessage(resource), err
	})
}

// managedResources lists the names of all ManagedResources of the extension in namespace.
func (a *Actuator) managedResources(ctx context.Context, namespace string) (workloads, services []string, err error) {
	list := &resourcesv1alpha1.ManagedResourceList{}
	if err := a.seed.List(ctx, list, client.InNamespace(namespace), client.MatchingLabels(ManagedResourceLabels())); err != nil {
		return nil, nil, fmt.Errorf("listing the ManagedResources in %s: %w", namespace, err)
	}
	for _, resource := range list.Items {
		if strings.HasPrefix(resource.Name, serviceResourcePrefix) {
			services = append(services, resource.Name)
		} else {
			workloads = append(workloads, resource.Name)
		}
	}
	return workloads, services, nil
}

func (a *Actuator) delete(ctx context.Context, namespace string, names []string) error {
	for _, name := range names {
		if err := managedresources.DeleteForShoot(ctx, a.seed, namespace, name); err != nil {
			return fmt.Errorf("deleting ManagedResource %s/%s: %w", namespace, name, err)
		}
	}
	return nil
}

func (a *Actuator) deleteAndWait(ctx context.Context, namespace string, names []string) error {
	if err := a.delete(ctx, namespace, names); err != nil {
		return err
	}
	for _, name := range names {
		err := a.wait(ctx, fmt.Sprintf("ManagedResource %s/%s to be gone", namespace, name), func(ctx context.Context) (string, error) {
			resource := &resourcesv1alpha1.ManagedResource{}
			err := a.seed.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, resource)
			if apierrors.IsNotFound(err) {
				return "", nil
			}
			return appliedMessage(resource), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *Actuator) keepObjects(ctx context.Context, namespace string, names []string) error {
	for _, name := range names {
		if err := managedresources.SetKeepObjects(ctx, a.seed, namespace, name, true); err != nil {
			return fmt.Errorf("keeping the objects of ManagedResource %s/%s: %w", namespace, name, err)
		}
	}
	return nil
}

// waitUntilApplied waits until the resource manager has applied the latest version of a ManagedResource, which includes
// that the objects which are no longer in it are gone.
func (a *Actuator) waitUntilApplied(ctx context.Context, namespace, name string) error {
	return a.wait(ctx, fmt.Sprintf("ManagedResource %s/%s to be applied", namespace, name), func(ctx context.Context) (string, error) {
		resource := &resourcesv1alpha1.ManagedResource{}
		if err := a.seed.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, resource); err != nil {
			return "", err
		}
		if health.CheckManagedResourceApplied(resource) != nil {
			return appliedMessage(resource), nil //nolint:nilerr // the message is the reason to wait longer
		}
		return "", nil
	})
}

// describe says what the resource manager reports about a ManagedResource.
func (a *Actuator) describe(ctx context.Context, namespace, name string) (string, error) {
	resource := &resourcesv1alpha1.ManagedResource{}
	if err := a.seed.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, resource); err != nil {
		return "", err
	}
	return appliedMessage(resource), nil
}

func appliedMessage(resource *resourcesv1alpha1.ManagedResource) string {
	applied := v1beta1helper.GetCondition(resource.Status.Conditions, resourcesv1alpha1.ResourcesApplied)
	if applied == nil || resource.Status.ObservedGeneration != resource.Generation {
		return fmt.Sprintf("ManagedResource %s was not seen by the resource manager yet", resource.Name)
	}
	return fmt.Sprintf("ManagedResource %s: %s: %s", resource.Name, applied.Reason, applied.Message)
}
