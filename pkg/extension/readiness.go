// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"context"
	"errors"
	"fmt"
	"time"

	extensionscontroller "github.com/gardener/gardener/extensions/pkg/controller"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

// readinessTimeout bounds one look. Without it a Shoot whose API server accepts requests and does not answer them would
// take a worker away from all others.
const readinessTimeout = 30 * time.Second

// ReadinessIntervals are the times between two looks at the caches of a Shoot. Both must be set.
type ReadinessIntervals struct {
	// Ready holds while all is well. The resource manager notices when a pod is not ready any more, and nobody else
	// notices a volume that was enlarged by hand, or an upstream that fails.
	Ready time.Duration
	// Unready holds while a pod is not ready, a volume grows or is not usable, or an upstream is not reachable.
	Unready time.Duration
}

// readiness keeps the conditions of the caches in the provider status up to date, and lets volumes grow that could not when
// the actuator wanted to. The actuator cannot: it is done long before a new cache has its volume or an old one has grown,
// and runs again only when gardenlet requests it, or when readiness has published another size of a volume.
type readiness struct {
	seed     client.Client
	forShoot ShootClient
	// proxied returns the configuration for requests to pods of the Shoot; nil disables the conditions that need them.
	proxied   shootConfig
	intervals ReadinessIntervals
}

// addReadiness watches the ManagedResources of the workloads, whose health the resource manager maintains, and the status
// that the actuator writes: after that a volume may have to be waited for.
func addReadiness(mgr manager.Manager, forShoot ShootClient, proxied shootConfig, intervals ReadinessIntervals, options controller.Options) error {
	toExtension := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, obj client.Object) []reconcile.Request {
		// gardenlet names the Extensions of a Shoot like their type.
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Namespace: obj.GetNamespace(), Name: Type}}}
	})
	workloads := predicate.NewPredicateFuncs(func(obj client.Object) bool { return obj.GetName() == workloadsResourceName })
	if err := builder.ControllerManagedBy(mgr).
		Named(Type+"-readiness").
		WithOptions(options).
		Watches(&resourcesv1alpha1.ManagedResource{}, toExtension, builder.WithPredicates(workloads)).
		Watches(&extensionsv1alpha1.Extension{}, &handler.EnqueueRequestForObject{}, builder.WithPredicates(statusChanged())).
		Complete(&readiness{seed: mgr.GetClient(), forShoot: forShoot, proxied: proxied, intervals: intervals}); err != nil {
		return fmt.Errorf("adding the controller %s-readiness: %w", Type, err)
	}
	return nil
}

// statusChanged lets the changes of the provider status through, of Extensions of our type.
func statusChanged() predicate.Predicate {
	return predicate.Funcs{
		UpdateFunc: func(update event.UpdateEvent) bool {
			before, ok := update.ObjectOld.(*extensionsv1alpha1.Extension)
			if !ok {
				return false
			}
			after, ok := update.ObjectNew.(*extensionsv1alpha1.Extension)
			return ok && after.Spec.Type == Type && !equality.Semantic.DeepEqual(before.Status.ProviderStatus, after.Status.ProviderStatus)
		},
		// What is there when the controller starts comes with its ManagedResource.
		CreateFunc:  func(event.CreateEvent) bool { return false },
		DeleteFunc:  func(event.DeleteEvent) bool { return false },
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
}

// Reconcile looks at the caches that the Extension's provider status names. Before the actuator has published them, or
// after it has been asked to remove them, there is nothing to report.
func (r *readiness) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, readinessTimeout)
	defer cancel()
	ex := &extensionsv1alpha1.Extension{}
	if err := r.seed.Get(ctx, request.NamespacedName, ex); apierrors.IsNotFound(err) {
		return reconcile.Result{}, nil
	} else if err != nil {
		return reconcile.Result{}, fmt.Errorf("reading Extension %s: %w", request.NamespacedName, err)
	}
	if ex.Spec.Type != Type || ex.DeletionTimestamp != nil {
		return reconcile.Result{}, nil
	}
	status := published(log.FromContext(ctx), ex)
	caches := status.Caches
	if len(caches) == 0 {
		return reconcile.Result{}, nil
	}
	cluster, err := extensionscontroller.GetCluster(ctx, r.seed, ex.Namespace)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("reading Cluster %s: %w", ex.Namespace, err)
	}
	if cluster.Shoot == nil || extensionscontroller.IsHibernationEnabled(cluster) {
		return reconcile.Result{}, nil
	}
	shoot, err := r.forShoot(ctx, ex.Namespace)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("connecting to the Shoot of %s: %w", ex.Namespace, err)
	}

	logger := log.FromContext(ctx)
	configured := configuredCaches(logger, ex)
	changed, settled := false, true
	var failed error
	for i := range caches {
		condition, err := readyCondition(ctx, shoot, caches[i].ObjectName())
		if err != nil {
			return reconcile.Result{}, err
		}
		changed = meta.SetStatusCondition(&caches[i].Conditions, condition) || changed
		settled = settled && condition.Status == metav1.ConditionTrue && condition.Reason != reasonSomePodsReady

		cache, ok := configured[caches[i].ObjectName()]
		if !ok {
			// The actuator is about to remove it.
			continue
		}
		// A volume that cannot be looked at does not keep anybody from knowing what is ready.
		if volume, err := growVolume(ctx, logger, shoot, cache); err != nil {
			failed = errors.Join(failed, err)
		} else {
			changed = volume.addTo(&caches[i]) || changed
		}
		settled = settled && volumeSettled(caches[i])
	}
	if r.proxied != nil {
		config, err := r.proxied(ctx, ex.Namespace)
		reportsChanged, reportsSettled := updateReports(ctx, config, err, caches, configured)
		changed, settled = changed || reportsChanged, settled && reportsSettled
	}
	if changed {
		// With a lock: the addresses in caches are those of the moment when ex was read.
		if err := writeStatus(ctx, r.seed, ex, status, client.MergeFromWithOptimisticLock{}); apierrors.IsConflict(err) {
			return reconcile.Result{RequeueAfter: time.Second}, failed
		} else if err != nil {
			return reconcile.Result{}, errors.Join(failed, err)
		}
	}
	if failed != nil {
		return reconcile.Result{}, failed
	}
	if !settled {
		return reconcile.Result{RequeueAfter: r.intervals.Unready}, nil
	}
	return reconcile.Result{RequeueAfter: r.intervals.Ready}, nil
}

// configuredCaches are the caches that the Extension asks for, by their ObjectName. There are none if the config is bad,
// which the actuator reports.
func configuredCaches(log logr.Logger, ex *extensionsv1alpha1.Extension) map[string]v1alpha3.RegistryCache {
	config, err := decodeConfig(ex)
	if err != nil {
		log.V(1).Info("Leaving the volumes alone, the configuration is bad", "error", err.Error())
		return nil
	}
	caches := map[string]v1alpha3.RegistryCache{}
	for _, cache := range config.Caches {
		caches[cache.ObjectName()] = cache
	}
	return caches
}
