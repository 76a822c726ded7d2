// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"context"
	"fmt"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/extension/monitoring"
)

// fieldOwner is under which the extension's fields of objects in the Seed are known to the API server.
const fieldOwner = client.FieldOwner("gardener-extension-registry-cache")

// deployMonitoring lets the Shoot's Prometheus and Plutono know of the caches. Kinds that the Seed does not have are left
// out: not every Seed has monitoring.
func (a *Actuator) deployMonitoring(ctx context.Context, log logr.Logger, namespace string, shoot *gardencorev1beta1.Shoot, config *v1alpha3.RegistryConfig) error {
	if !monitoring.Wanted(shoot) {
		return a.deleteMonitoring(ctx, namespace)
	}
	for _, obj := range monitoring.Objects(namespace, config.Caches) {
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
		if err != nil {
			return fmt.Errorf("encoding %s: %w", describeObject(obj), err)
		}
		// It belongs to Prometheus' operator.
		delete(content, "status")
		err = a.seed.Apply(ctx, client.ApplyConfigurationFromUnstructured(&unstructured.Unstructured{Object: content}), fieldOwner, client.ForceOwnership)
		if meta.IsNoMatchError(err) {
			log.V(1).Info("The Seed has no such kind, leaving an object of the monitoring out", "object", describeObject(obj))
			continue
		}
		if err != nil {
			return fmt.Errorf("applying %s: %w", describeObject(obj), err)
		}
	}
	return nil
}

func (a *Actuator) deleteMonitoring(ctx context.Context, namespace string) error {
	for _, obj := range monitoring.Objects(namespace, nil) {
		// The client needs no more to know of it, and has no need to know the type.
		named := &unstructured.Unstructured{}
		named.SetGroupVersionKind(obj.GetObjectKind().GroupVersionKind())
		named.SetNamespace(obj.GetNamespace())
		named.SetName(obj.GetName())
		if err := a.seed.Delete(ctx, named); client.IgnoreNotFound(err) != nil && !meta.IsNoMatchError(err) {
			return fmt.Errorf("deleting %s: %w", describeObject(obj), err)
		}
	}
	return nil
}

func describeObject(obj client.Object) string {
	return obj.GetObjectKind().GroupVersionKind().Kind + " " + client.ObjectKeyFromObject(obj).String()
}
