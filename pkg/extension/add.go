// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"context"
	"fmt"

	extensionsconfigv1alpha1 "github.com/gardener/gardener/extensions/pkg/apis/config/v1alpha1"
	extensionscontroller "github.com/gardener/gardener/extensions/pkg/controller"
	"github.com/gardener/gardener/extensions/pkg/controller/extension"
	"github.com/gardener/gardener/extensions/pkg/util"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	predicateutils "github.com/gardener/gardener/pkg/controllerutils/predicate"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/registry-cache/extension/pkg/extension/desired"
)

// AddOptions are what the operator decides about the controllers.
type AddOptions struct {
	// Controller holds for each of the controllers.
	Controller controller.Options
	// Readiness are the intervals of the controller that reports whether caches are ready.
	Readiness ReadinessIntervals
	// IgnoreOperationAnnotation makes the controller act on each change, and not only when gardenlet asks for it or the
	// size of a volume has changed.
	IgnoreOperationAnnotation bool
	// ExtensionClasses are the classes to be responsible for; empty means Shoots.
	ExtensionClasses []extensionsv1alpha1.ExtensionClass
}

// AddToManager adds the controllers of the extension to mgr: the one that deploys caches, and the one that reports
// whether they are ready. What NewActuator says about its client holds for the client of mgr.
func AddToManager(ctx context.Context, mgr manager.Manager, caches desired.Options, options AddOptions) error {
	forShoot := newShootClient(mgr.GetClient())
	if err := extension.Add(mgr, extension.AddArgs{
		Actuator:                  NewActuator(mgr.GetClient(), forShoot, caches),
		Name:                      Type,
		FinalizerSuffix:           Type,
		ControllerOptions:         options.Controller,
		Predicates:                extension.DefaultPredicates(ctx, mgr, options.IgnoreOperationAnnotation),
		Type:                      Type,
		WatchBuilder:              watchContentSizes(mgr, options.ExtensionClasses),
		IgnoreOperationAnnotation: options.IgnoreOperationAnnotation,
		ExtensionClasses:          options.ExtensionClasses,
	}); err != nil {
		return fmt.Errorf("adding the controller %s: %w", Type, err)
	}
	return addReadiness(mgr, forShoot, newShootConfig(mgr.GetClient()), options.Readiness, options.Controller)
}

// watchContentSizes makes the actuator deploy the size of a volume that has grown since the last reconciliation, because
// gardenlet does not request a reconciliation for that.
func watchContentSizes(mgr manager.Manager, classes []extensionsv1alpha1.ExtensionClass) extensionscontroller.WatchBuilder {
	return extensionscontroller.NewWatchBuilder(func(c controller.Controller) error {
		return c.Watch(source.Kind[client.Object](
			mgr.GetCache(), &extensionsv1alpha1.Extension{}, &handler.EnqueueRequestForObject{},
			contentSizeChanged(), predicateutils.HasClass(classes...),
		))
	})
}

// newShootClient returns the ShootClient that reads the kubeconfig in the Shoot's namespace.
func newShootClient(seed client.Client) ShootClient {
	return func(ctx context.Context, namespace string) (client.Client, error) {
		_, shoot, err := util.NewClientForShoot(ctx, seed, namespace, client.Options{}, extensionsconfigv1alpha1.RESTOptions{})
		return shoot, err
	}
}

// newShootConfig returns the shootConfig that reads the kubeconfig in the Shoot's namespace.
func newShootConfig(seed client.Client) shootConfig {
	return func(ctx context.Context, namespace string) (*rest.Config, error) {
		config, _, err := util.NewClientForShoot(ctx, seed, namespace, client.Options{}, extensionsconfigv1alpha1.RESTOptions{})
		return config, err
	}
}
