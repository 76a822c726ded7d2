// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	configv1alpha1 "github.com/registry-cache/extension/pkg/apis/config/v1alpha1"
	"github.com/registry-cache/extension/pkg/apis/registry"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/extension/desired"
)

// reasonSomePodsReady is the reason of the condition Ready if a cache serves, and not all of its pods do.
const reasonSomePodsReady = "SomePodsReady"

// published is the provider status of the Extension, without caches if it has none yet.
func published(log logr.Logger, ex *extensionsv1alpha1.Extension) *v1alpha3.RegistryStatus {
	if ex.Status.ProviderStatus == nil {
		return registry.NewStatus(nil)
	}
	status, err := registry.DecodeStatus(ex.Status.ProviderStatus.Raw)
	if err != nil {
		// The actuator replaces it, and all of it but the history can be found out again.
		log.Error(err, "Ignoring a provider status that cannot be read")
		return registry.NewStatus(nil)
	}
	return status
}

func publishedCaches(log logr.Logger, ex *extensionsv1alpha1.Extension) []v1alpha3.RegistryCacheStatus {
	return published(log, ex).Caches
}

// updateStatus publishes the caches of config, each of which has an address in addresses and its volumes in volumes, and
// the name of the Secret with the roots of their certificates, nil if none has https.
func (a *Actuator) updateStatus(ctx context.Context, log logr.Logger, shoot client.Client, ex *extensionsv1alpha1.Extension, config *v1alpha3.RegistryConfig, addresses map[string]string, volumes map[string]volumeReport, caSecretName *string) error {
	before := published(log, ex)
	conditions := map[string][]metav1.Condition{}
	for _, cache := range before.Caches {
		conditions[cache.Upstream] = slices.Clone(cache.Conditions)
	}
	caches := make([]v1alpha3.RegistryCacheStatus, 0, len(config.Caches))
	for _, cache := range config.Caches {
		ready, err := readyCondition(ctx, shoot, cache.ObjectName())
		if err != nil {
			return err
		}
		address := addresses[cache.Upstream]
		status := v1alpha3.RegistryCacheStatus{
			Upstream:   cache.Upstream,
			Name:       cache.ObjectName(),
			Endpoint:   desired.Endpoint(cache, address),
			RemoteURL:  *cache.RemoteURL,
			ClusterIP:  address,
			Engine:     string(cmp.Or(a.options.Engine, configv1alpha1.RegistryCache)),
			Conditions: conditions[cache.Upstream],
		}
		meta.SetStatusCondition(&status.Conditions, ready)
		volumes[cache.Upstream].addTo(&status)
		caches = append(caches, status)
	}
	after := registry.NewStatus(caches)
	after.CASecretName = caSecretName
	if equality.Semantic.DeepEqual(before, after) {
		return nil
	}
	// Without a lock: nobody else writes addresses, and the conditions are of this moment.
	return writeStatus(ctx, a.seed, ex, after)
}

// writeStatus replaces the provider status of ex. options are those of the patch.
func writeStatus(ctx context.Context, seed client.Client, ex *extensionsv1alpha1.Extension, status *v1alpha3.RegistryStatus, options ...client.MergeFromOption) error {
	raw, err := json.Marshal(status)
	if err != nil {
		return fmt.Errorf("encoding the provider status: %w", err)
	}
	patch := client.MergeFromWithOptions(ex.DeepCopy(), options...)
	ex.Status.ProviderStatus = &runtime.RawExtension{Raw: raw}
	if err := seed.Status().Patch(ctx, ex, patch); err != nil {
		return fmt.Errorf("writing the provider status of Extension %s: %w", client.ObjectKeyFromObject(ex), err)
	}
	return nil
}

// readyCondition tells whether a pod of the cache whose StatefulSet has that name can serve; of a highly available one,
// one of the two is enough. Its transition time is not set.
func readyCondition(ctx context.Context, shoot client.Client, name string) (metav1.Condition, error) {
	set := &appsv1.StatefulSet{}
	key := client.ObjectKey{Namespace: desired.Namespace, Name: name}
	condition := metav1.Condition{Type: v1alpha3.ConditionReady, Status: metav1.ConditionFalse}
	switch err := shoot.Get(ctx, key, set); {
	case apierrors.IsNotFound(err):
		condition.Reason, condition.Message = "NotDeployed", fmt.Sprintf("StatefulSet %s does not exist", key)
	case err != nil:
		return metav1.Condition{}, fmt.Errorf("reading StatefulSet %s of the Shoot: %w", key, err)
	case set.Status.ReadyReplicas == 0:
		condition.Reason, condition.Message = "PodNotReady", fmt.Sprintf("no pod of StatefulSet %s is ready", key)
	case set.Spec.Replicas != nil && *set.Spec.Replicas > set.Status.ReadyReplicas:
		condition.Status = metav1.ConditionTrue
		condition.Reason, condition.Message = reasonSomePodsReady, fmt.Sprintf("%d of %d pods of StatefulSet %s are ready", set.Status.ReadyReplicas, *set.Spec.Replicas, key)
	case set.Spec.Replicas != nil && *set.Spec.Replicas > 1:
		condition.Status = metav1.ConditionTrue
		condition.Reason, condition.Message = "PodReady", fmt.Sprintf("%d of %d pods of StatefulSet %s are ready", *set.Spec.Replicas, *set.Spec.Replicas, key)
	default:
		condition.Status = metav1.ConditionTrue
		condition.Reason, condition.Message = "PodReady", fmt.Sprintf("%d pods of StatefulSet %s are ready", set.Status.ReadyReplicas, key)
	}
	return condition, nil
}
