// SPDX-License-Identifier: Apache-2.0

package gardenlet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	v1beta1helper "github.com/gardener/gardener/pkg/api/core/v1beta1/helper"
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	v1beta1constants "github.com/gardener/gardener/pkg/apis/core/v1beta1/constants"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"github.com/gardener/gardener/pkg/controllerutils"
	"github.com/gardener/gardener/pkg/extensions"
	"github.com/gardener/gardener/pkg/utils/kubernetes/health"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed/poll"
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

// waitForExtensions waits until every extension has reconciled what deployExtensions wrote. The error has the codes that
// the extension reports.
func (o *operation) waitForExtensions(ctx context.Context) error {
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
			if v1beta1helper.HasNonRetryableErrorCode(*extension.Status.LastError) || time.Since(failing) > failureGrace {
				return poll.Stop(err)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("extension %s: %w", key, err)
		}
	}
	return nil
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

// lastError is nil if the controller reports none. It carries the codes of the report.
func lastError(extension *extensionsv1alpha1.Extension) error {
	last := extension.Status.LastError
	if last == nil {
		return nil
	}
	return v1beta1helper.NewErrorWithCodes(errors.New(last.Description), last.Codes...)
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
