// SPDX-License-Identifier: Apache-2.0

package gardenlet

import (
	"fmt"
	"sync"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"github.com/gardener/gardener/pkg/client/kubernetes"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// An operation that failed is tried again after firstRetry, then after twice as long each time, up to lastRetry.
const (
	firstRetry = 5 * time.Second
	lastRetry  = 5 * time.Minute
)

// Options are what the gardenlet cannot find out from inside of the cluster.
type Options struct {
	// Version is Gardener's version, for the status of Shoots.
	Version string
	// Kubeconfig reaches the Shoot from a pod in the seed, with the rights of an administrator and embedded credentials:
	// Gardener's extension library takes no others.
	Kubeconfig []byte
	// Containerd are the settings that the nodes were made with.
	Containerd Containerd
}

// Containerd are those settings of a node's containerd that an OperatingSystemConfig sets too. To repeat them is to
// leave the node as it is.
type Containerd struct {
	SandboxImage string
	CgroupDriver extensionsv1alpha1.CgroupDriverName
}

// Scheme returns the scheme with the kinds of garden and seed, always the same one.
var Scheme = sync.OnceValue(func() *runtime.Scheme {
	scheme := runtime.NewScheme()
	// They fail only if two types claim one kind, which is a mistake in Gardener's module.
	utilruntime.Must(kubernetes.AddSeedSchemeToScheme(scheme))
	utilruntime.Must(kubernetes.AddGardenSchemeToScheme(scheme))
	return scheme
})

// Add adds the controllers to the manager, whose client must not read from a cache and knows Scheme.
func Add(mgr manager.Manager, options Options) error {
	shootConfig, err := clientcmd.RESTConfigFromKubeConfig(options.Kubeconfig)
	if err != nil {
		return fmt.Errorf("reading the kubeconfig of the Shoot: %w", err)
	}
	shootDiscovery, err := discovery.NewDiscoveryClientForConfig(shootConfig)
	if err != nil {
		return fmt.Errorf("connecting to the Shoot: %w", err)
	}

	main := &reconciler{client: mgr.GetClient(), options: options, interval: 500 * time.Millisecond}
	if err := builder.ControllerManagedBy(mgr).
		Named("shoot").
		// All that a gardenlet reacts to raises the generation; what it writes itself does not.
		For(&gardencorev1beta1.Shoot{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WithOptions(controller.Options{
			// Two Shoots at once would both find the nodes free.
			MaxConcurrentReconciles: 1,
			RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](firstRetry, lastRetry),
		}).
		Complete(main); err != nil {
		return err
	}

	health := &care{client: mgr.GetClient(), clock: clock.RealClock{}, shootAPIServer: shootDiscovery.RESTClient()}
	return builder.ControllerManagedBy(mgr).
		Named("care").
		For(&gardencorev1beta1.Shoot{}, builder.WithPredicates(operationEnds())).
		Complete(health)
}
