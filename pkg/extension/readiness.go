package extension

import (
	"context"
	"fmt"
	"time"

	extensionscontroller "github.com/gardener/gardener/extensions/pkg/controller"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

const (
	// unreadyInterval is how often the readiness of a Shoot's caches is looked at while one of their pods is not ready.
	// While all are, the resource manager notices when that changes.
	unreadyInterval = 30 * time.Second
	// readinessTimeout bounds one look. Without it a Shoot whose API server accepts requests and does not answer them
	// would take a worker away from all others.
	readinessTimeout = 30 * time.Second
)

// readiness keeps the condition Ready of the caches in the provider status up to date. The actuator cannot: it is done
// long before a new cache has its volume, and runs again only when gardenlet asks for it.
type readiness struct {
	seed     client.Client
	forShoot ShootClient
}

// addReadiness watches the ManagedResources of the workloads, whose health the resource manager maintains.
func addReadiness(mgr manager.Manager, forShoot ShootClient, options controller.Options) error {
	toExtension := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, obj client.Object) []reconcile.Request {
		// gardenlet names the Extensions of a Shoot like their type.
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Namespace: obj.GetNamespace(), Name: Type}}}
	})
	workloads := predicate.NewPredicateFuncs(func(obj client.Object) bool { return obj.GetName() == workloadsResourceName })
	if err := builder.ControllerManagedBy(mgr).
		Named(Type+"-readiness").
		WithOptions(options).
		Watches(&resourcesv1alpha1.ManagedResource{}, toExtension, builder.WithPredicates(workloads)).
		Complete(&readiness{seed: mgr.GetClient(), forShoot: forShoot}); err != nil {
		return fmt.Errorf("adding the controller %s-readiness: %w", Type, err)
	}
	return nil
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
	caches := publishedCaches(log.FromContext(ctx), ex)
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

	changed, allReady := false, true
	for i := range caches {
		condition, err := readyCondition(ctx, shoot, caches[i].ObjectName())
		if err != nil {
			return reconcile.Result{}, err
		}
		changed = meta.SetStatusCondition(&caches[i].Conditions, condition) || changed
		allReady = allReady && condition.Status == metav1.ConditionTrue && condition.Reason != reasonSomePodsReady
	}
	if changed {
		// With a lock: the addresses in caches are those of the moment when ex was read.
		if err := writeStatus(ctx, r.seed, ex, caches, client.MergeFromWithOptimisticLock{}); apierrors.IsConflict(err) {
			return reconcile.Result{RequeueAfter: time.Second}, nil
		} else if err != nil {
			return reconcile.Result{}, err
		}
	}
	if !allReady {
		return reconcile.Result{RequeueAfter: unreadyInterval}, nil
	}
	return reconcile.Result{}, nil
}
