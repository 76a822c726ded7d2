package shoot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	v1beta1constants "github.com/gardener/gardener/pkg/apis/core/v1beta1/constants"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"github.com/gardener/gardener/pkg/controllerutils"
	"github.com/gardener/gardener/pkg/extensions"
	"github.com/gardener/gardener/pkg/utils/kubernetes/health"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/test/testbed/poll"
)

const (
	// registryCache is the type of the extension whose status is part of the Result.
	registryCache = "registry-cache"
	// registryAPIVersion is written out: what the controller reports is checked against the design, not against itself.
	registryAPIVersion = "registry.extensions.gardener.cloud/v1alpha3"
)

// wantedExtensions returns the Shoot's extensions by type. Gardener adds those that a landscape enables for all Shoots;
// here are none.
func (o *operation) wantedExtensions() map[string]*runtime.RawExtension {
	wanted := map[string]*runtime.RawExtension{}
	for _, extension := range o.shoot.Spec.Extensions {
		if extension.Disabled == nil || !*extension.Disabled {
			wanted[extension.Type] = extension.ProviderConfig
		}
	}
	return wanted
}

// deployExtensions writes one Extension for each type, named like it, with the order to reconcile it.
func (o *operation) deployExtensions(ctx context.Context) error {
	wanted := o.wantedExtensions()
	for _, extensionType := range slices.Sorted(maps.Keys(wanted)) {
		extension := o.extension(extensionType)
		if _, err := controllerutils.GetAndCreateOrMergePatch(ctx, o.client, extension, func() error {
			metav1.SetMetaDataAnnotation(&extension.ObjectMeta, v1beta1constants.GardenerOperation, v1beta1constants.GardenerOperationReconcile)
			metav1.SetMetaDataAnnotation(&extension.ObjectMeta, v1beta1constants.GardenerTimestamp, time.Now().UTC().Format(time.RFC3339Nano))
			extension.Spec.Type = extensionType
			extension.Spec.ProviderConfig = wanted[extensionType]
			return nil
		}); err != nil {
			return fmt.Errorf("writing Extension %s: %w", client.ObjectKeyFromObject(extension), err)
		}
	}
	return nil
}

// waitForExtensions waits until every extension has reconciled what deployExtensions wrote, and returns the status of
// registry-cache.
func (o *operation) waitForExtensions(ctx context.Context) (*v1alpha3.RegistryStatus, error) {
	for _, extensionType := range slices.Sorted(maps.Keys(o.wantedExtensions())) {
		key := client.ObjectKey{Namespace: o.namespace, Name: extensionType}
		var failing time.Time
		err := poll.Until(ctx, o.interval, extensionTimeout, func(ctx context.Context) error {
			// A new object each time: decoding leaves fields as they are that the answer does not have.
			extension := &extensionsv1alpha1.Extension{}
			if err := o.client.Get(ctx, key, extension); err != nil {
				return err
			}
			err := health.CheckExtensionObject(extension)
			if err == nil || !hasFailed(extension) {
				return err
			}
			// Between two attempts of the controller the Extension does not look failed.
			if failing.IsZero() {
				failing = time.Now()
			}
			err = lastError(extension)
			if isFinal(extension) || time.Since(failing) > failureGrace {
				return poll.Stop(err)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("extension %s: %w", key, err)
		}
	}
	if _, ok := o.wantedExtensions()[registryCache]; !ok {
		return nil, nil
	}
	extension := o.extension(registryCache)
	if err := o.client.Get(ctx, client.ObjectKeyFromObject(extension), extension); err != nil {
		return nil, fmt.Errorf("reading Extension %s: %w", client.ObjectKeyFromObject(extension), err)
	}
	return decodeStatus(extension)
}

// hasFailed tells whether the controller has worked on the latest order and ended with an error. What an earlier order
// left in the status does not count.
func hasFailed(extension *extensionsv1alpha1.Extension) bool {
	status := extension.Status
	if status.LastError == nil || status.LastOperation == nil || status.ObservedGeneration != extension.Generation {
		return false
	}
	if _, waiting := extension.Annotations[v1beta1constants.GardenerOperation]; waiting {
		return false
	}
	ordered, err := time.Parse(time.RFC3339Nano, extension.Annotations[v1beta1constants.GardenerTimestamp])
	if err != nil {
		return true // somebody else's order
	}
	// Times in a status have seconds.
	return !status.LastOperation.LastUpdateTime.Time.Before(ordered.Truncate(time.Second)) &&
		(status.LastOperation.State == gardencorev1beta1.LastOperationStateError || status.LastOperation.State == gardencorev1beta1.LastOperationStateFailed)
}

// isFinal tells whether the controller says that only the owner can correct the error.
func isFinal(extension *extensionsv1alpha1.Extension) bool {
	return slices.Contains(extension.Status.LastError.Codes, gardencorev1beta1.ErrorConfigurationProblem)
}

// lastError is nil if the controller reports none.
func lastError(extension *extensionsv1alpha1.Extension) error {
	if extension.Status.LastError == nil {
		return nil
	}
	return errors.New(extension.Status.LastError.Description)
}

// decodeStatus returns the provider status of an Extension registry-cache.
func decodeStatus(extension *extensionsv1alpha1.Extension) (*v1alpha3.RegistryStatus, error) {
	key := client.ObjectKeyFromObject(extension)
	if extension.Status.ProviderStatus == nil || len(extension.Status.ProviderStatus.Raw) == 0 {
		return nil, fmt.Errorf("extension %s is ready and has no status.providerStatus", key)
	}
	status := &v1alpha3.RegistryStatus{}
	if err := json.Unmarshal(extension.Status.ProviderStatus.Raw, status); err != nil {
		return nil, fmt.Errorf("decoding status.providerStatus of extension %s: %w", key, err)
	}
	if status.APIVersion != registryAPIVersion || status.Kind != "RegistryStatus" {
		return nil, fmt.Errorf("status.providerStatus of extension %s is %s %s, want %s RegistryStatus", key, status.APIVersion, status.Kind, registryAPIVersion)
	}
	return status, nil
}

// deleteExtensions deletes the Extensions whose type is not kept and waits until their controllers have cleaned up.
func (o *operation) deleteExtensions(ctx context.Context, kept map[string]*runtime.RawExtension) error {
	list := &extensionsv1alpha1.ExtensionList{}
	if err := o.client.List(ctx, list, client.InNamespace(o.namespace)); err != nil {
		return fmt.Errorf("listing Extensions in namespace %s: %w", o.namespace, err)
	}
	var stale []client.ObjectKey
	for i := range list.Items {
		extension := &list.Items[i]
		if _, ok := kept[extension.Spec.Type]; ok {
			continue
		}
		if err := extensions.DeleteExtensionObject(ctx, o.client, extension); err != nil {
			return fmt.Errorf("deleting Extension %s: %w", client.ObjectKeyFromObject(extension), err)
		}
		stale = append(stale, client.ObjectKeyFromObject(extension))
	}
	for _, key := range stale {
		err := poll.Until(ctx, o.interval, extensionTimeout, func(ctx context.Context) error {
			extension := &extensionsv1alpha1.Extension{}
			if err := o.client.Get(ctx, key, extension); err != nil {
				return client.IgnoreNotFound(err)
			}
			return errors.Join(errors.New("it still exists"), lastError(extension))
		})
		if err != nil {
			return fmt.Errorf("waiting for the deletion of Extension %s: %w", key, err)
		}
	}
	return nil
}

func (o *operation) extension(extensionType string) *extensionsv1alpha1.Extension {
	return &extensionsv1alpha1.Extension{ObjectMeta: metav1.ObjectMeta{Namespace: o.namespace, Name: extensionType}}
}
