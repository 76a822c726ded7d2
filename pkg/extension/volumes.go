// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/extension/desired"
)

// Reasons of the condition VolumeResized, the worst first: with several claims, the condition is about the worst.
const (
	// reasonRefused (False): the API server did not accept the larger size.
	reasonRefused = "Refused"
	// reasonNotExpandable (False): the StorageClass does not allow it, nothing was tried.
	reasonNotExpandable = "NotExpandable"
	// reasonResizing (False): the storage is at it.
	reasonResizing = "Resizing"
	// reasonNotProvisioned (Unknown): the claim has no volume yet.
	reasonNotProvisioned = "NotProvisioned"
	// reasonLarger (True): the claim asks for more than is configured.
	reasonLarger = "LargerThanConfigured"
	// reasonAsConfigured (True): the claim asks for what is configured, and has it.
	reasonAsConfigured = "AsConfigured"
)

var volumeReasons = []string{reasonRefused, reasonNotExpandable, reasonResizing, reasonNotProvisioned, reasonLarger, reasonAsConfigured}

// wayOut tells a Shoot owner how to get a larger volume where the one that is there cannot grow.
const wayOut = "Nothing was changed and the cache goes on with the volume that it has. For a larger one, let the StorageClass allow " +
	"expansion (allowVolumeExpansion: true) if its storage can expand volumes; or remove the cache from the Shoot and add it " +
	"again when it is gone, possibly with another StorageClass: it then starts with an empty volume"

// decideVolume compares a claim with the size that is configured. grow tells that the claim is to ask for that size; the
// condition is then not filled in. class is the StorageClass of the claim, nil if it has none or there is none of that
// name; it counts only for a claim that asks for less than size. The condition has no transition time.
//
// A claim never asks for less than before: what its owner has enlarged stays, and so does all of it when a smaller size
// is configured.
func decideVolume(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, size resource.Quantity) (grow bool, condition metav1.Condition) {
	requested, capacity := *claim.Spec.Resources.Requests.Storage(), *claim.Status.Capacity.Storage()
	is := func(status metav1.ConditionStatus, reason, format string, args ...any) metav1.Condition {
		message := fmt.Sprintf("PersistentVolumeClaim %s/%s ", claim.Namespace, claim.Name) + fmt.Sprintf(format, args...)
		return metav1.Condition{Type: v1alpha3.ConditionVolumeResized, Status: status, Reason: reason, Message: message}
	}
	switch {
	// The API server refuses to change a claim that is not bound (ValidatePersistentVolumeClaimUpdate in
	// k8s.io/kubernetes/pkg/apis/core/validation).
	case claim.Status.Phase != corev1.ClaimBound:
		return false, is(metav1.ConditionUnknown, reasonNotProvisioned, "asks for %s and has no volume yet", requested.String())
	case requested.Cmp(size) < 0 && class == nil:
		why := "it has no StorageClass"
		if name := claim.Spec.StorageClassName; name != nil && *name != "" {
			why = fmt.Sprintf("its StorageClass %s does not exist", *name)
		}
		return false, is(metav1.ConditionFalse, reasonNotExpandable, "has %s, %s are configured, and it cannot grow: %s. %s", requested.String(), size.String(), why, wayOut)
	case requested.Cmp(size) < 0 && (class.AllowVolumeExpansion == nil || !*class.AllowVolumeExpansion):
		return false, is(metav1.ConditionFalse, reasonNotExpandable, "has %s, %s are configured, and it cannot grow: its StorageClass %s does not allow that. %s", requested.String(), size.String(), class.Name, wayOut)
	case requested.Cmp(size) < 0:
		return true, metav1.Condition{}
	case capacity.Cmp(requested) < 0:
		return false, is(metav1.ConditionFalse, reasonResizing, "grows from %s to %s%s", capacity.String(), requested.String(), progress(claim))
	case requested.Cmp(size) > 0:
		return false, is(metav1.ConditionTrue, reasonLarger, "has %s, more than the %s that are configured, and stays so", requested.String(), size.String())
	default:
		return false, is(metav1.ConditionTrue, reasonAsConfigured, "has the %s that are configured", requested.String())
	}
}

// progress is what Kubernetes says about the expansion of a claim: errors of the storage among others, and whether the
// pod must be restarted for it.
func progress(claim *corev1.PersistentVolumeClaim) string {
	var text strings.Builder
	for _, condition := range claim.Status.Conditions {
		if condition.Status == corev1.ConditionTrue && condition.Message != "" {
			fmt.Fprintf(&text, "; %s: %s", condition.Type, condition.Message)
		}
	}
	return text.String()
}

// volumeReport is the state of the volumes of a cache. The zero value is that of a cache without a claim.
type volumeReport struct {
	// size is nil without a claim.
	size *v1alpha3.VolumeStatus
	// worst is the condition VolumeResized, without a transition time.
	worst metav1.Condition
}

// growVolumes enlarges the volumes of all caches of config, as growVolume does, and returns their states by upstream. A cache
// whose volumes cannot be read or enlarged has the state that published contains; the other ones are not affected. The error
// is about all of them.
func growVolumes(ctx context.Context, log logr.Logger, shoot client.Client, config *v1alpha3.RegistryConfig, published []v1alpha3.RegistryCacheStatus) (map[string]volumeReport, error) {
	volumes := map[string]volumeReport{}
	var failed error
	for _, cache := range config.Caches {
		volume, err := growVolume(ctx, log, shoot, cache)
		if err != nil {
			failed = errors.Join(failed, err)
			volume = publishedReport(published, cache)
		}
		volumes[cache.Upstream] = volume
	}
	return volumes, failed
}

// publishedReport is the state of the volumes of cache that the last report has published.
func publishedReport(published []v1alpha3.RegistryCacheStatus, cache v1alpha3.RegistryCache) volumeReport {
	for _, status := range published {
		if condition := meta.FindStatusCondition(status.Conditions, v1alpha3.ConditionVolumeResized); status.Upstream == cache.Upstream && condition != nil {
			return volumeReport{size: status.Volume, worst: *condition}
		}
	}
	return volumeReport{}
}

// growVolume enlarges the claims of cache that are too small and can grow, and returns the state of their volumes
// afterwards. It does not wait until they have grown.
func growVolume(ctx context.Context, log logr.Logger, shoot client.Client, cache v1alpha3.RegistryCache) (volumeReport, error) {
	claims, err := claimsInUse(ctx, shoot, cache)
	if err != nil {
		return volumeReport{}, err
	}
	var report volumeReport
	for i := range claims {
		condition, err := growClaim(ctx, log, shoot, &claims[i], *cache.Volume.Size)
		if err != nil {
			return volumeReport{}, err
		}
		if i == 0 || slices.Index(volumeReasons, condition.Reason) < slices.Index(volumeReasons, report.worst.Reason) {
			report.worst = condition
		}
		report.size = smaller(report.size, &claims[i])
	}
	return report, nil
}

// addTo puts the report into status, and returns whether status has changed.
func (r volumeReport) addTo(status *v1alpha3.RegistryCacheStatus) (changed bool) {
	if r.size == nil {
		changed = meta.RemoveStatusCondition(&status.Conditions, v1alpha3.ConditionVolumeResized)
	} else {
		changed = meta.SetStatusCondition(&status.Conditions, r.worst)
	}
	if !equality.Semantic.DeepEqual(status.Volume, r.size) {
		status.Volume, changed = r.size, true
	}
	return changed
}

// smaller is volume with the figures of claim where those are smaller.
func smaller(volume *v1alpha3.VolumeStatus, claim *corev1.PersistentVolumeClaim) *v1alpha3.VolumeStatus {
	requested, capacity := claim.Spec.Resources.Requests.Storage(), claim.Status.Capacity.Storage()
	if capacity.IsZero() {
		capacity = nil
	}
	if volume == nil {
		return &v1alpha3.VolumeStatus{Requested: *requested, Capacity: capacity}
	}
	if requested.Cmp(volume.Requested) < 0 {
		volume.Requested = *requested
	}
	// One without a volume has no capacity: its pod does not run, and must not limit the content of the other ones.
	if capacity != nil && (volume.Capacity == nil || capacity.Cmp(*volume.Capacity) < 0) {
		volume.Capacity = capacity
	}
	return volume
}

// claimsInUse lists the claims of the replicas that the cache has. A claim that was left behind by fewer replicas than
// before is not among them: its file system grows only while a pod has it mounted, which may be never.
func claimsInUse(ctx context.Context, shoot client.Client, cache v1alpha3.RegistryCache) ([]corev1.PersistentVolumeClaim, error) {
	list := &corev1.PersistentVolumeClaimList{}
	label := client.MatchingLabels{v1alpha3.UpstreamHostLabel: v1alpha3.UpstreamHostValue(cache.Upstream)}
	if err := shoot.List(ctx, list, client.InNamespace(desired.Namespace), label); err != nil {
		return nil, fmt.Errorf("listing the PersistentVolumeClaims of the cache of %s: %w", cache.Upstream, err)
	}
	set := &appsv1.StatefulSet{}
	key := client.ObjectKey{Namespace: desired.Namespace, Name: cache.ObjectName()}
	if err := shoot.Get(ctx, key, set); client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("reading StatefulSet %s of the Shoot: %w", key, err)
	}
	// The live number, because Gardener's webhook for high availability may have set another one than we did. Somebody
	// who scales to 0 for a moment still has a volume.
	replicas := int32(1)
	if set.Spec.Replicas != nil {
		replicas = max(replicas, *set.Spec.Replicas)
	}
	return slices.DeleteFunc(list.Items, func(claim corev1.PersistentVolumeClaim) bool {
		ordinal, ok := desired.ClaimOrdinal(cache, claim.Name)
		return !ok || ordinal >= replicas
	}), nil
}

// growClaim makes claim ask for size if it asks for less and can grow, and returns the condition of the result.
func growClaim(ctx context.Context, log logr.Logger, shoot client.Client, claim *corev1.PersistentVolumeClaim, size resource.Quantity) (metav1.Condition, error) {
	var class *storagev1.StorageClass
	if claim.Spec.Resources.Requests.Storage().Cmp(size) < 0 {
		var err error
		if class, err = storageClass(ctx, shoot, claim); err != nil {
			return metav1.Condition{}, err
		}
	}

	var condition metav1.Condition
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		var grow bool
		if grow, condition = decideVolume(claim, class, size); !grow {
			return nil
		}
		larger := claim.DeepCopy()
		larger.Spec.Resources.Requests[corev1.ResourceStorage] = size
		// With a lock: if the owner has asked for even more meanwhile, this would take it back.
		patch := client.MergeFromWithOptions(claim, client.MergeFromWithOptimisticLock{})
		switch err := shoot.Patch(ctx, larger, patch); {
		case apierrors.IsConflict(err):
			if err := shoot.Get(ctx, client.ObjectKeyFromObject(claim), claim); err != nil {
				return err
			}
			return err
		// A quota, a policy, or a volume that was not made by the StorageClass: to try again does not help, and is no
		// reason to fail the reconciliation of the Shoot.
		case apierrors.IsForbidden(err) || apierrors.IsInvalid(err):
			condition = metav1.Condition{
				Type: v1alpha3.ConditionVolumeResized, Status: metav1.ConditionFalse, Reason: reasonRefused,
				Message: fmt.Sprintf("PersistentVolumeClaim %s has %s, %s are configured, and the API server refused that: %v. %s",
					client.ObjectKeyFromObject(claim), claim.Spec.Resources.Requests.Storage(), size.String(), err, wayOut),
			}
			return nil
		case err != nil:
			return err
		}
		log.Info("A volume grows", "persistentVolumeClaim", client.ObjectKeyFromObject(claim),
			"from", claim.Spec.Resources.Requests.Storage().String(), "to", size.String())
		*claim = *larger
		_, condition = decideVolume(claim, class, size)
		return nil
	})
	if err != nil {
		return metav1.Condition{}, fmt.Errorf("growing PersistentVolumeClaim %s of the Shoot: %w", client.ObjectKeyFromObject(claim), err)
	}
	return condition, nil
}

// storageClass is the StorageClass of claim, nil if it has none or there is none of that name.
func storageClass(ctx context.Context, shoot client.Client, claim *corev1.PersistentVolumeClaim) (*storagev1.StorageClass, error) {
	if claim.Spec.StorageClassName == nil || *claim.Spec.StorageClassName == "" {
		return nil, nil
	}
	class := &storagev1.StorageClass{}
	if err := shoot.Get(ctx, client.ObjectKey{Name: *claim.Spec.StorageClassName}, class); apierrors.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("reading StorageClass %s of the Shoot: %w", *claim.Spec.StorageClassName, err)
	}
	return class, nil
}

// volumeSettled tells whether nothing is going to happen with the volume of a cache by itself.
func volumeSettled(status v1alpha3.RegistryCacheStatus) bool {
	condition := meta.FindStatusCondition(status.Conditions, v1alpha3.ConditionVolumeResized)
	return condition == nil || condition.Reason != reasonResizing && condition.Reason != reasonNotProvisioned
}
