// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	extensionscontroller "github.com/gardener/gardener/extensions/pkg/controller"
	controllercmd "github.com/gardener/gardener/extensions/pkg/controller/cmd"
	"github.com/gardener/gardener/extensions/pkg/controller/heartbeat"
	heartbeatcmd "github.com/gardener/gardener/extensions/pkg/controller/heartbeat/cmd"
	webhookcmd "github.com/gardener/gardener/extensions/pkg/webhook/cmd"
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
	"github.com/gardener/gardener/pkg/healthz"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	ctrlhealthz "sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/registry-cache/extension/pkg/apis/config"
	"github.com/registry-cache/extension/pkg/extension"
	"github.com/registry-cache/extension/pkg/extension/desired"
	"github.com/registry-cache/extension/pkg/imagevector"
	"github.com/registry-cache/extension/pkg/nodeconfig"
)

// name is the name from which Gardener's library derives the names of the Service, the webhook configuration, the
// certificates and the leases.
const name = "registry-cache"

// controllerOptions are the flags of the subcommand controller: --config, and those of Gardener's extension library.
type controllerOptions struct {
	configFile string

	rest       controllercmd.RESTOptions
	manager    controllercmd.ManagerOptions
	general    controllercmd.GeneralOptions
	controller controllercmd.ControllerOptions
	reconciler controllercmd.ReconcilerOptions
	heartbeat  heartbeatcmd.Options
	webhooks   *webhookcmd.AddToManagerOptions
}

func newControllerOptions() *controllerOptions {
	o := &controllerOptions{
		manager: controllercmd.ManagerOptions{
			LeaderElection:    true,
			LeaderElectionID:  controllercmd.LeaderElectionNameID(name),
			WebhookServerPort: 10250,
			WebhookCertDir:    "/tmp/gardener-extension-registry-cache-certificates",
		},
		controller: controllercmd.ControllerOptions{MaxConcurrentReconciles: 5},
		heartbeat:  heartbeatcmd.Options{ExtensionName: name},
	}
	// "" and nil are the ManagedResource and the namespace selector of webhooks in Shoots; there are no such webhooks.
	o.webhooks = webhookcmd.NewAddToManagerOptions(name, "", nil, &o.general, &webhookcmd.ServerOptions{},
		webhookcmd.NewSwitchOptions(webhookcmd.Switch("node-configuration", nodeconfig.NewWebhook)))
	return o
}

func (o *controllerOptions) aggregate() controllercmd.OptionAggregator {
	return controllercmd.NewOptionAggregator(&o.rest, &o.manager, &o.general, &o.controller, &o.reconciler,
		controllercmd.PrefixOption("heartbeat-", &o.heartbeat), o.webhooks)
}

func (o *controllerOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.configFile, "config", "", "Path of a file with a ControllerConfiguration. Default: no file, all fields have their default values.")
	aggregator := o.aggregate()
	aggregator.AddFlags(flags)
}

func (o *controllerOptions) complete() error {
	aggregator := o.aggregate()
	if err := aggregator.Complete(); err != nil {
		return fmt.Errorf("reading flags: %w", err)
	}
	return o.heartbeat.Validate()
}

func newControllerCommand() *cobra.Command {
	o := newControllerOptions()
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Run the controller, which deploys caches to Shoots and configures their nodes; for a Seed",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.complete(); err != nil {
				return err
			}
			log.SetLogger(o.manager.Completed().Logger)
			klog.SetLogger(o.manager.Completed().Logger) // for leader election
			return o.run(cmd.Context())
		},
	}
	o.addFlags(cmd.Flags())
	return cmd
}

func (o *controllerOptions) run(ctx context.Context) error {
	configuration := config.Default()
	if o.configFile != "" {
		var err error
		if configuration, err = config.Load(o.configFile); err != nil {
			return err
		}
	}
	image, err := imagevector.Engine(string(configuration.Engine), version)
	if err != nil {
		return err
	}

	options, err := o.managerOptions()
	if err != nil {
		return err
	}
	mgr, err := manager.New(seedClientConfig(o.rest.Completed().Config), options)
	if err != nil {
		return fmt.Errorf("creating the manager: %w", err)
	}
	if err := addHealthChecks(mgr); err != nil {
		return err
	}
	if err := addWebhooks(ctx, mgr, o.webhooks.Completed(), nil); err != nil {
		return err
	}
	if err := heartbeat.Add(mgr, heartbeat.AddArgs{
		ExtensionName:        o.heartbeat.Completed().ExtensionName,
		Namespace:            o.heartbeat.Completed().Namespace,
		RenewIntervalSeconds: o.heartbeat.Completed().RenewIntervalSeconds,
		Clock:                clock.RealClock{},
	}); err != nil {
		return fmt.Errorf("adding the heartbeat: %w", err)
	}
	if err := extension.AddToManager(ctx, mgr, desired.Options{
		Engine:      configuration.Engine,
		Image:       image,
		Resources:   configuration.Resources,
		CABundle:    configuration.CABundle,
		CacheServer: configuration.CacheServer,
	}, extension.AddOptions{
		Readiness:                 extension.ReadinessIntervals{Ready: configuration.Readiness.Interval.Duration, Unready: configuration.Readiness.UnreadyInterval.Duration},
		Controller:                controller.Options{MaxConcurrentReconciles: o.controller.Completed().MaxConcurrentReconciles},
		IgnoreOperationAnnotation: o.reconciler.Completed().IgnoreOperationAnnotation,
		ExtensionClasses:          o.general.Completed().ExtensionClasses,
	}); err != nil {
		return err
	}

	mgr.GetLogger().Info("Starting", "version", version, "engine", configuration.Engine, "engineImage", image)
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("running the manager: %w", err)
	}
	return nil
}

// seedClientConfig returns a copy of config with the rate limit of Gardener's own extensions: 100 requests per second,
// with bursts of 130. The reconciliation of one Shoot sends about 25 requests, and an update of the extension starts
// the reconciliation of all Shoots of the Seed. client-go's default limit is 5 requests per second.
func seedClientConfig(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = 100, 130
	return config
}

func (o *controllerOptions) managerOptions() (manager.Options, error) {
	options := o.manager.Completed().Options()
	// manager.New creates the client, which looks up the uncached types immediately. The scheme must be complete before.
	options.Scheme = runtime.NewScheme()
	if err := extensionscontroller.AddToScheme(options.Scheme); err != nil {
		return options, fmt.Errorf("adding types to the scheme: %w", err)
	}
	// Cache only the ManagedResources of this extension: a Seed has dozens of others for each Shoot.
	options.Cache.ByObject = map[client.Object]cache.ByObject{
		&resourcesv1alpha1.ManagedResource{}: {Label: labels.SelectorFromSet(extension.ManagedResourceLabels())},
	}
	options.Client.Cache = &client.CacheOptions{DisableFor: []client.Object{
		// The actuator waits until its own writes have taken effect. A cache could return an older state.
		&resourcesv1alpha1.ManagedResource{},
		// A cache would store all objects of these types in the Seed.
		&corev1.Secret{},
		&corev1.Namespace{},
		&coordinationv1.Lease{},
		&admissionregistrationv1.MutatingWebhookConfiguration{},
	}}
	return options, nil
}

// addHealthChecks adds the checks of the liveness probe (/healthz) and of the readiness probe (/readyz).
func addHealthChecks(mgr manager.Manager) error {
	for _, check := range []struct {
		name  string
		add   func(name string, check ctrlhealthz.Checker) error
		check ctrlhealthz.Checker
	}{
		{"ping", mgr.AddHealthzCheck, ctrlhealthz.Ping},
		{"informer-sync", mgr.AddHealthzCheck, healthz.NewCacheSyncHealthzWithDeadline(mgr.GetLogger(), clock.RealClock{}, mgr.GetCache(), healthz.DefaultCacheSyncDeadline)},
		{"informer-sync", mgr.AddReadyzCheck, healthz.NewCacheSyncHealthz(mgr.GetCache())},
		{"webhook-server", mgr.AddReadyzCheck, mgr.GetWebhookServer().StartedChecker()},
	} {
		if err := check.add(check.name, check.check); err != nil {
			return fmt.Errorf("adding the health check %s: %w", check.name, err)
		}
	}
	return nil
}
