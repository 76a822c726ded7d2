// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"context"
	"fmt"
	"strings"

	v1beta1constants "github.com/gardener/gardener/pkg/apis/core/v1beta1/constants"
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
	"github.com/gardener/gardener/pkg/utils/kubernetes/health"
	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/extension/desired"
)

// setState is how the StatefulSet of a cache is, seen from its volume claim template.
type setState int

const (
	setCurrent setState = iota
	setOutdated
	setLeaving
	setMissing
)

// replaceStatefulSets has the StatefulSets re-created whose volume claim template is not what it should be, so that the
// volumes of later replicas match. The template cannot be changed: the API server refuses it, and the resource manager
// silently keeps the live one (mergeStatefulSet in gardener/pkg/resourcemanager/controller/managedresource/merger.go).
//
// The pods go on. The StatefulSet is deleted and they are left as orphans; the new one has the same name and selector, so
// it adopts them and the revisions of their template. The volume claim template is not part of the revision
// (k8s.io/kubernetes/pkg/controller/statefulset/stateful_set_utils.go, getPatch), so the revision of a pod is still the
// latest, and no pod is restarted. Neither are the claims: they belong to no StatefulSet.
//
// The ManagedResource must hold the new template already, and the resource manager must have seen it: otherwise it would
// bring the old template back, or, if it is away, the pods would have nobody to look after them. Each step follows from
// what is there, so it does not matter after which one an earlier attempt has ended.
func (a *Actuator) replaceStatefulSets(ctx context.Context, log logr.Logger, shoot client.Client, namespace string, config *v1alpha3.RegistryConfig) error {
	var pending, missing []v1alpha3.RegistryCache
	var upstreams []string
	for _, cache := range config.Caches {
		switch _, state, err := statefulSetState(ctx, shoot, cache); {
		case err != nil:
			return err
		case state == setMissing:
			missing = append(missing, cache)
		case state != setCurrent:
			pending = append(pending, cache)
		}
	}
	if len(pending)+len(missing) == 0 {
		return nil
	}
	workloads, err := a.readManagedResource(ctx, namespace, workloadsResourceName)
	if err != nil {
		return err
	}
	if workloads.Annotations[resourcesv1alpha1.Ignore] == "true" {
		// Somebody works on the caches by hand: nothing would come back.
		log.Info("ManagedResource is ignored, StatefulSets stay as they are", "managedResource", workloadsResourceName)
		return nil
	}
	// New caches have no StatefulSet yet, and are not waited for. One that the resource manager says it has applied was
	// deleted, maybe by an earlier attempt.
	if health.CheckManagedResourceApplied(workloads) == nil {
		pending = append(pending, missing...)
	}
	if len(pending) == 0 {
		return nil
	}
	for _, cache := range pending {
		upstreams = append(upstreams, cache.Upstream)
	}
	return a.wait(ctx, "the StatefulSets of the caches of "+strings.Join(upstreams, ", ")+" to be re-created", func(ctx context.Context) (string, error) {
		return a.replaceStep(ctx, log, shoot, namespace, pending)
	})
}

// replaceStep does what can be done now for the StatefulSets of caches, and tells what there is to wait for, "" for
// nothing.
func (a *Actuator) replaceStep(ctx context.Context, log logr.Logger, shoot client.Client, namespace string, caches []v1alpha3.RegistryCache) (string, error) {
	workloads, err := a.readManagedResource(ctx, namespace, workloadsResourceName)
	if err != nil {
		return "", err
	}
	var reasons []string
	missing := false
	for _, cache := range caches {
		set, state, err := statefulSetState(ctx, shoot, cache)
		if err != nil {
			return "", err
		}
		switch state {
		case setCurrent:
		case setMissing:
			missing = true
			reasons = append(reasons, fmt.Sprintf("StatefulSet %s is not back yet", cache.ObjectName()))
		case setLeaving:
			reasons = append(reasons, fmt.Sprintf("StatefulSet %s is being deleted", cache.ObjectName()))
		case setOutdated:
			if health.CheckManagedResourceApplied(workloads) != nil {
				reasons = append(reasons, appliedMessage(workloads))
				continue
			}
			log.Info("Re-creating a StatefulSet for its volume claim template, its pods go on", "statefulSet", client.ObjectKeyFromObject(set))
			err := shoot.Delete(ctx, set, client.PropagationPolicy(metav1.DeletePropagationOrphan), client.Preconditions{UID: &set.UID})
			// A conflict: it is another one already.
			if client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) {
				return "", fmt.Errorf("deleting StatefulSet %s of the Shoot: %w", client.ObjectKeyFromObject(set), err)
			}
			reasons = append(reasons, fmt.Sprintf("StatefulSet %s is being deleted", cache.ObjectName()))
		}
	}
	if missing {
		// The resource manager notices a missing object by itself only if everything beside it was healthy. Each time
		// again: it may have looked before its own cache knew of the deletion.
		if err := a.requestReconciliation(ctx, workloads); err != nil {
			return "", err
		}
	}
	return strings.Join(reasons, "; "), nil
}

// statefulSetState reads the StatefulSet of cache. It is nil if it is missing.
func statefulSetState(ctx context.Context, shoot client.Client, cache v1alpha3.RegistryCache) (*appsv1.StatefulSet, setState, error) {
	set := &appsv1.StatefulSet{}
	key := client.ObjectKey{Namespace: desired.Namespace, Name: cache.ObjectName()}
	switch err := shoot.Get(ctx, key, set); {
	case apierrors.IsNotFound(err):
		return nil, setMissing, nil
	case err != nil:
		return nil, 0, fmt.Errorf("reading StatefulSet %s of the Shoot: %w", key, err)
	case set.DeletionTimestamp != nil:
		return set, setLeaving, nil
	case !hasTemplate(set, desired.VolumeClaimTemplate(cache)):
		return set, setOutdated, nil
	default:
		return set, setCurrent, nil
	}
}

// hasTemplate tells whether the claims of new replicas of set get the size and the labels of template. Other labels may
// be there, the resource manager adds its own; another StorageClass has no effect on a cache that is there.
func hasTemplate(set *appsv1.StatefulSet, template corev1.PersistentVolumeClaim) bool {
	if len(set.Spec.VolumeClaimTemplates) != 1 {
		return false
	}
	live := set.Spec.VolumeClaimTemplates[0]
	for key, value := range template.Labels {
		if got, ok := live.Labels[key]; !ok || got != value {
			return false
		}
	}
	return live.Name == template.Name &&
		live.Spec.Resources.Requests.Storage().Cmp(*template.Spec.Resources.Requests.Storage()) == 0
}

func (a *Actuator) readManagedResource(ctx context.Context, namespace, name string) (*resourcesv1alpha1.ManagedResource, error) {
	resource := &resourcesv1alpha1.ManagedResource{}
	if err := a.seed.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, resource); err != nil {
		return nil, fmt.Errorf("reading ManagedResource %s/%s: %w", namespace, name, err)
	}
	return resource, nil
}

// requestReconciliation makes the resource manager apply resource again. It removes the annotation when it begins.
func (a *Actuator) requestReconciliation(ctx context.Context, resource *resourcesv1alpha1.ManagedResource) error {
	if resource.Annotations[v1beta1constants.GardenerOperation] == v1beta1constants.GardenerOperationReconcile {
		return nil
	}
	patch := client.MergeFrom(resource.DeepCopy())
	metav1.SetMetaDataAnnotation(&resource.ObjectMeta, v1beta1constants.GardenerOperation, v1beta1constants.GardenerOperationReconcile)
	if err := a.seed.Patch(ctx, resource, patch); err != nil {
		return fmt.Errorf("annotating ManagedResource %s: %w", client.ObjectKeyFromObject(resource), err)
	}
	return nil
}
