// SPDX-License-Identifier: Apache-2.0

package shoot

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed/gardener"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/poll"
)

const (
	admissionTimeout = time.Minute
	// refusedField is what the admission complains about.
	refusedField = "providerConfig.caches"
)

// WaitForAdmission waits until Gardener's API server reaches the admission of the extension. That takes a moment after its
// pods are ready, because each node has to learn the address. It is asked about a Shoot that it has to refuse, and that
// nobody stores.
func WaitForAdmission(ctx context.Context, cluster *kindcluster.Cluster) error {
	c, err := connect(cluster)
	if err != nil {
		return err
	}
	return waitForAdmission(ctx, c, 250*time.Millisecond)
}

func waitForAdmission(ctx context.Context, c client.Client, interval time.Duration) error {
	return poll.Until(ctx, interval, admissionTimeout, func(ctx context.Context) error {
		shoot := &gardencorev1beta1.Shoot{
			ObjectMeta: metav1.ObjectMeta{Name: "refused", Namespace: gardener.ProjectNamespace},
			Spec: gardencorev1beta1.ShootSpec{Extensions: []gardencorev1beta1.Extension{{
				Type: "registry-cache",
				ProviderConfig: &runtime.RawExtension{
					Raw: []byte(`{"apiVersion":"registry.extensions.gardener.cloud/v1alpha3","kind":"RegistryConfig","caches":[]}`),
				},
			}}},
		}
		complete(shoot, 1)
		err := c.Create(ctx, shoot, client.DryRunAll)
		if err == nil {
			return errors.New("the admission is not asked: a Shoot without caches was accepted")
		}
		if !strings.Contains(err.Error(), refusedField) {
			return fmt.Errorf("asking the admission: %w", err)
		}
		return nil
	})
}
