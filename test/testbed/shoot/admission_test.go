// SPDX-License-Identifier: Apache-2.0

package shoot

import (
	"context"
	"errors"
	"testing"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/registry-cache/extension/test/testbed/gardenlet"
)

// The first answers of an API server are that nobody is there, or none of the admission at all.
func TestWaitForAdmission(t *testing.T) {
	t.Parallel()
	answers := []error{
		apierrors.NewInternalError(errors.New(`failed calling webhook "shoots": connect: connection refused`)),
		nil,
		apierrors.NewForbidden(gardencorev1beta1.Resource("shoots"), "refused", errors.New("spec.extensions[0].providerConfig.caches: Required value")),
	}
	asked := 0
	c := fake.NewClientBuilder().WithScheme(gardenlet.Scheme()).WithInterceptorFuncs(interceptor.Funcs{
		Create: func(_ context.Context, _ client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			options := (&client.CreateOptions{}).ApplyOptions(opts)
			if len(options.DryRun) == 0 || obj.GetName() != "refused" {
				t.Errorf("created %s with %+v", obj.GetName(), options)
			}
			answer := answers[asked]
			asked++
			return answer
		},
	}).Build()
	if err := waitForAdmission(t.Context(), c, time.Millisecond); err != nil || asked != len(answers) {
		t.Errorf("asked %d times: %v", asked, err)
	}
}
