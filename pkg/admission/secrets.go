// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/pkg/apis/registry/validation"
)

// secretsOf returns the function that reads the Secrets in the namespace of a Shoot while one request is answered. It reads
// each Secret once: any number of caches may refer to the same. All its errors but apierrors.IsNotFound say that they are
// not about the Shoot. It is not safe for concurrent use.
func secretsOf(ctx context.Context, reader client.Reader, namespace string) validation.GetSecret {
	type answer struct {
		secret *corev1.Secret
		err    error
	}
	known := map[string]answer{}
	return func(name string) (*corev1.Secret, error) {
		if _, ok := known[name]; !ok {
			secret := &corev1.Secret{}
			err := reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, secret)
			known[name] = answer{secret, explain(err)}
		}
		return known[name].secret, known[name].err
	}
}

func explain(err error) error {
	const notYours = "the Shoot cannot be checked, which is not a mistake in it"
	switch {
	case err == nil || apierrors.IsNotFound(err):
		return err
	case apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s: the admission of the extension registry-cache may not read Secrets, ask the operator of Gardener: %w", notYours, err)
	default:
		return fmt.Errorf("%s: the API server of the garden does not answer, try again later: %w", notYours, err)
	}
}
