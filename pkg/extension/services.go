// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"context"
	"fmt"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/extension/desired"
)

// removeHeadlessService deletes the Service of cache if it is headless. Somebody has replaced it then: a Service cannot
// become headless. Neither can it get an address, and the resource manager keeps the live value (mergeService in
// gardener/pkg/resourcemanager/controller/managedresource/merger.go), so the cache would have no address for ever.
func (a *Actuator) removeHeadlessService(ctx context.Context, log logr.Logger, shoot client.Client, namespace string, cache v1alpha3.RegistryCache) error {
	service := &corev1.Service{}
	key := client.ObjectKeyFromObject(desired.Service(cache, ""))
	if err := shoot.Get(ctx, key, service); apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("reading Service %s of the Shoot: %w", key, err)
	}
	if service.Spec.ClusterIP != corev1.ClusterIPNone || service.DeletionTimestamp != nil {
		return nil
	}
	log.Info("Removing a headless Service that has the name of a cache's, which comes back", "service", key)
	err := shoot.Delete(ctx, service, client.Preconditions{UID: &service.UID})
	// A conflict: it is another one already.
	if client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) {
		return fmt.Errorf("deleting Service %s of the Shoot: %w", key, err)
	}
	resource, err := a.readManagedResource(ctx, namespace, serviceResourceName(cache))
	if err != nil {
		return err
	}
	// The resource manager notices a missing object by itself only if it had been healthy before.
	return a.requestReconciliation(ctx, resource)
}
