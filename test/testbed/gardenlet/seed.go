// SPDX-License-Identifier: Apache-2.0

package gardenlet

import (
	"context"
	"errors"
	"fmt"
	"strings"

	v1beta1constants "github.com/gardener/gardener/pkg/apis/core/v1beta1/constants"
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
	"github.com/gardener/gardener/pkg/controllerutils"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	podsecurityadmissionapi "k8s.io/pod-security-admission/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed/poll"
)

// deployNamespace labels the namespace as extensions select it.
func (o *operation) deployNamespace(ctx context.Context) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: o.namespace}}
	_, err := controllerutils.GetAndCreateOrMergePatch(ctx, o.client, namespace, func() error {
		meta := &namespace.ObjectMeta
		for label := range meta.Labels {
			if strings.HasPrefix(label, v1beta1constants.LabelExtensionPrefix) {
				delete(meta.Labels, label)
			}
		}
		for extensionType := range o.wantedExtensions() {
			metav1.SetMetaDataLabel(meta, v1beta1constants.LabelExtensionPrefix+extensionType, "true")
		}
		metav1.SetMetaDataLabel(meta, v1beta1constants.GardenRole, v1beta1constants.GardenRoleShoot)
		metav1.SetMetaDataLabel(meta, v1beta1constants.LabelSeedProvider, local)
		metav1.SetMetaDataLabel(meta, v1beta1constants.LabelBackupProvider, local)
		metav1.SetMetaDataLabel(meta, v1beta1constants.LabelShootProvider, o.shoot.Spec.Provider.Type)
		metav1.SetMetaDataLabel(meta, v1beta1constants.LabelNetworkingProvider, *o.shoot.Spec.Networking.Type)
		metav1.SetMetaDataLabel(meta, podsecurityadmissionapi.EnforceLevelLabel, string(podsecurityadmissionapi.LevelPrivileged))
		metav1.SetMetaDataLabel(meta, resourcesv1alpha1.HighAvailabilityConfigConsider, "true")
		metav1.SetMetaDataAnnotation(meta, resourcesv1alpha1.HighAvailabilityConfigFailureToleranceType, "")
		metav1.SetMetaDataAnnotation(meta, v1beta1constants.ShootUID, string(o.shoot.Status.UID))
		return nil
	})
	if err != nil {
		return fmt.Errorf("writing namespace %s: %w", o.namespace, err)
	}
	return nil
}

// deleteNamespace deletes the namespace with everything in it and waits until it is gone.
func (o *operation) deleteNamespace(ctx context.Context) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: o.namespace}}
	if err := o.client.Delete(ctx, namespace); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("deleting namespace %s: %w", o.namespace, err)
	}
	err := poll.Until(ctx, o.interval, namespaceTimeout, func(ctx context.Context) error {
		namespace := &corev1.Namespace{}
		if err := o.client.Get(ctx, client.ObjectKey{Name: o.namespace}, namespace); apierrors.IsNotFound(err) {
			return nil
		} else if err != nil {
			return err
		}
		reasons := []error{errors.New("it still exists")}
		for _, condition := range namespace.Status.Conditions {
			if condition.Status == corev1.ConditionTrue {
				reasons = append(reasons, errors.New(condition.Message))
			}
		}
		return errors.Join(reasons...)
	})
	if err != nil {
		return fmt.Errorf("waiting for the deletion of namespace %s: %w", o.namespace, err)
	}
	return nil
}

// deployReferencedResources copies the Secrets of spec.resources from the project to where extensions look for them.
func (o *operation) deployReferencedResources(ctx context.Context) error {
	for i, resource := range o.shoot.Spec.Resources {
		source := &corev1.Secret{}
		key := client.ObjectKey{Namespace: o.shoot.Namespace, Name: resource.ResourceRef.Name}
		if err := o.client.Get(ctx, key, source); err != nil {
			return fmt.Errorf("spec.resources[%d].resourceRef: reading secret %s: %w", i, key, err)
		}
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: o.namespace, Name: v1beta1constants.ReferencedResourcesPrefix + source.Name}}
		if _, err := controllerutils.GetAndCreateOrMergePatch(ctx, o.client, secret, func() error {
			secret.Type, secret.Data, secret.Immutable = source.Type, source.Data, source.Immutable
			return nil
		}); err != nil {
			return fmt.Errorf("writing secret %s: %w", client.ObjectKeyFromObject(secret), err)
		}
	}
	return nil
}

// deployKubeconfig writes the Secret from which extensions get their client for the Shoot.
func (o *operation) deployKubeconfig(ctx context.Context) error {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: o.namespace, Name: v1beta1constants.SecretNameGardenerInternal}}
	if _, err := controllerutils.GetAndCreateOrMergePatch(ctx, o.client, secret, func() error {
		secret.Type = corev1.SecretTypeOpaque
		secret.Data = map[string][]byte{"kubeconfig": o.options.Kubeconfig}
		return nil
	}); err != nil {
		return fmt.Errorf("writing secret %s: %w", client.ObjectKeyFromObject(secret), err)
	}
	return nil
}
