// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	extensionscontroller "github.com/gardener/gardener/extensions/pkg/controller"
	v1beta1helper "github.com/gardener/gardener/pkg/api/core/v1beta1/helper"
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/apis/registry/validation"
	"github.com/registry-cache/extension/pkg/contract"
	"github.com/registry-cache/extension/pkg/extension/desired"
)

// copyTimeout is how long a reconciliation waits, in all, for the copies of the Secrets that the Shoot refers to.
// gardenlet asks the Seed's resource manager for them and goes on, so the extension may be quicker.
const copyTimeout = 30 * time.Second

// referencedSecrets reads what the caches of config refer to, by upstream. Caches that refer to nothing are left out.
//
// gardenlet copies the Secrets of spec.resources into the namespace of the Shoot in the Seed, as ref-<name>. Who rotates
// credentials lets spec.resources refer to another Secret, which changes the Shoot, so nothing has to be watched. All are
// checked before any of them is used. The errors name the fields of config, and repeat no value of a Secret.
func (a *Actuator) referencedSecrets(ctx context.Context, namespace string, shoot *gardencorev1beta1.Shoot, config *v1alpha3.RegistryConfig) (map[string]desired.Secrets, error) {
	waitCtx, cancel := context.WithTimeout(ctx, min(copyTimeout, a.waitTimeout))
	defer cancel()
	var unread error
	read := map[string]*corev1.Secret{}
	get := func(name string) (*corev1.Secret, error) {
		if secret := read[name]; secret != nil {
			return secret, nil
		}
		secret, err := a.referencedSecret(ctx, waitCtx, namespace, name)
		if err != nil {
			unread = err
			return nil, err
		}
		read[name] = secret
		return secret, nil
	}
	if errs := validation.ValidateSecrets(config, shoot.Spec.Resources, get, field.NewPath("providerConfig")); len(errs) > 0 {
		if unread != nil {
			// gardenlet would not be here if the Shoot referred to what does not exist: the copy is late, or the Seed
			// has a problem. With an error code Gardener would not try again before the Shoot is changed.
			return nil, fmt.Errorf("%w (%w)", errs.ToAggregate(), unread)
		}
		return nil, v1beta1helper.NewErrorWithCodes(errs.ToAggregate(), gardencorev1beta1.ErrorConfigurationProblem)
	}

	data := func(reference *string) map[string][]byte {
		if reference == nil {
			return nil
		}
		index := slices.IndexFunc(shoot.Spec.Resources, func(r gardencorev1beta1.NamedResourceReference) bool { return r.Name == *reference })
		return read[shoot.Spec.Resources[index].ResourceRef.Name].Data
	}
	all := map[string]desired.Secrets{}
	for _, cache := range config.Caches {
		var secrets desired.Secrets
		secrets.Credentials = credentialsIn(data(cache.SecretReferenceName))
		if cache.Proxy != nil {
			secrets.ProxyCredentials = credentialsIn(data(cache.Proxy.SecretReferenceName))
		}
		secrets.CABundle = string(data(cache.CABundleSecretReferenceName)[contract.CABundleKey])
		if secrets != (desired.Secrets{}) {
			all[cache.Upstream] = secrets
		}
	}
	return all, nil
}

// credentialsIn returns the credentials in the data of a Secret, nil for nil.
func credentialsIn(data map[string][]byte) *desired.Credentials {
	if data == nil {
		return nil
	}
	return &desired.Credentials{
		Username: contract.Credential(data[contract.UsernameKey]),
		Password: contract.Credential(data[contract.PasswordKey]),
	}
}

// referencedSecret reads the copy of a Secret and gives it the name by which the Shoot owner knows it. If there is none
// it waits until there is one, or until waitCtx ends; apierrors.IsNotFound is true for the error then.
func (a *Actuator) referencedSecret(ctx, waitCtx context.Context, namespace, name string) (*corev1.Secret, error) {
	secret := &corev1.Secret{}
	get := func(ctx context.Context) error {
		ref := &autoscalingv1.CrossVersionObjectReference{APIVersion: "v1", Kind: "Secret", Name: name}
		return extensionscontroller.GetObjectByReference(ctx, a.seed, ref, namespace, secret)
	}
	err := get(ctx)
	if apierrors.IsNotFound(err) {
		missing := err
		if err = a.wait(waitCtx, fmt.Sprintf("the copy of Secret %s", name), func(ctx context.Context) (string, error) {
			err := get(ctx)
			if apierrors.IsNotFound(err) {
				return err.Error(), nil
			}
			return "", err
		}); errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			err = missing
		}
	}
	if err != nil {
		return nil, err
	}
	secret.Name = name
	return secret, nil
}
