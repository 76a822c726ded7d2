// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	controllercmd "github.com/gardener/gardener/extensions/pkg/controller/cmd"
	webhookcmd "github.com/gardener/gardener/extensions/pkg/webhook/cmd"
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	v1beta1constants "github.com/gardener/gardener/pkg/apis/core/v1beta1/constants"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/registry-cache/extension/pkg/admission"
)

// admissionName is the name from which Gardener's library derives the names of the Service, the webhook configuration,
// the certificates and the lease of the admission.
const admissionName = "registry-cache-admission"

// uncached are all types that the admission reads. It reads them directly from the API server, because a cache would
// need the permission to list them.
var uncached = []client.Object{
	&corev1.Secret{},
	&corev1.Namespace{},
	&coordinationv1.Lease{},
	&admissionregistrationv1.ValidatingWebhookConfiguration{},
}

// admissionOptions are the flags of the subcommand admission. All of them come from Gardener's extension library.
type admissionOptions struct {
	rest     controllercmd.RESTOptions
	manager  controllercmd.ManagerOptions
	webhooks *webhookcmd.AddToManagerOptions

	// skipNameValidation allows controllers with equal names in one process. Only tests set it.
	skipNameValidation bool
}

func newAdmissionOptions() *admissionOptions {
	return &admissionOptions{
		manager: controllercmd.ManagerOptions{
			LeaderElection:    true,
			LeaderElectionID:  controllercmd.LeaderElectionNameID(admissionName),
			WebhookServerPort: 10250,
			WebhookCertDir:    "/tmp/gardener-extension-registry-cache-admission-certificates",
		},
		webhooks: webhookcmd.NewAddToManagerOptions(admissionName, "", nil, nil, &webhookcmd.ServerOptions{},
			webhookcmd.NewSwitchOptions(webhookcmd.Switch("shoots", admission.NewWebhook))),
	}
}

func (o *admissionOptions) aggregate() controllercmd.OptionAggregator {
	return controllercmd.NewOptionAggregator(&o.rest, &o.manager, o.webhooks)
}

func (o *admissionOptions) addFlags(flags *pflag.FlagSet) {
	aggregator := o.aggregate()
	aggregator.AddFlags(flags)
	flags.Lookup(controllercmd.KubeconfigFlag).Usage = "Path of the kubeconfig of the garden cluster, which contains the Shoot objects. " +
		"Default: the value of the environment variable " + v1beta1constants.EnvGenericGardenKubeconfig + "; if it is unset, the in-cluster configuration."
}

func (o *admissionOptions) complete() error {
	if o.rest.Kubeconfig == "" {
		// gardener-operator sets the variable if the garden is a virtual cluster.
		o.rest.Kubeconfig = os.Getenv(v1beta1constants.EnvGenericGardenKubeconfig)
	}
	aggregator := o.aggregate()
	if err := aggregator.Complete(); err != nil {
		return fmt.Errorf("reading flags: %w", err)
	}
	return nil
}

func newAdmissionCommand() *cobra.Command {
	o := newAdmissionOptions()
	cmd := &cobra.Command{
		Use:   "admission",
		Short: "Run the admission webhook, which rejects Shoots with invalid caches; for the runtime cluster of the Garden",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.complete(); err != nil {
				return err
			}
			log.SetLogger(o.manager.Completed().Logger)
			klog.SetLogger(o.manager.Completed().Logger) // for leader election
			runtimeConfig, err := o.runtimeConfig()
			if err != nil {
				return err
			}
			return o.run(cmd.Context(), runtimeConfig)
		},
	}
	o.addFlags(cmd.Flags())
	return cmd
}

// runtimeConfig returns the client configuration of the runtime cluster. The admission runs in this cluster, and its
// lease and the Secrets with its certificates are there. The result is nil if the garden is its own runtime cluster,
// or if the program runs outside a cluster.
func (o *admissionOptions) runtimeConfig() (*rest.Config, error) {
	if o.rest.Kubeconfig == "" {
		return nil, nil
	}
	config, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the in-cluster configuration: %w", err)
	}
	return config, nil
}

func (o *admissionOptions) run(ctx context.Context, runtimeConfig *rest.Config) error {
	options := o.manager.Completed().Options()
	options.Scheme = runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, gardencorev1beta1.AddToScheme} {
		if err := add(options.Scheme); err != nil {
			return fmt.Errorf("adding types to the scheme: %w", err)
		}
	}
	options.Client.Cache = &client.CacheOptions{DisableFor: uncached}
	options.LeaderElectionConfig = runtimeConfig
	options.Controller.SkipNameValidation = &o.skipNameValidation
	mgr, err := manager.New(o.rest.Completed().Config, options)
	if err != nil {
		return fmt.Errorf("creating the manager: %w", err)
	}
	if err := addHealthChecks(mgr); err != nil {
		return err
	}
	sourceCluster, err := addRuntimeCluster(mgr, runtimeConfig)
	if err != nil {
		return err
	}
	if err := addWebhooks(ctx, mgr, o.webhooks.Completed(), sourceCluster); err != nil {
		return err
	}

	mgr.GetLogger().Info("Starting", "version", version)
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("running the manager: %w", err)
	}
	return nil
}

// addRuntimeCluster adds the runtime cluster to mgr. It returns nil if config is nil. Gardener's library then stores
// the certificates in the cluster of mgr, which is the garden.
func addRuntimeCluster(mgr manager.Manager, config *rest.Config) (cluster.Cluster, error) {
	if config == nil {
		return nil, nil
	}
	runtimeCluster, err := cluster.New(config, func(options *cluster.Options) {
		options.Logger = mgr.GetLogger()
		options.Client.Cache = &client.CacheOptions{DisableFor: uncached}
	})
	if err != nil {
		return nil, fmt.Errorf("connecting to the runtime cluster: %w", err)
	}
	if err := mgr.Add(runtimeCluster); err != nil {
		return nil, fmt.Errorf("adding the runtime cluster: %w", err)
	}
	return runtimeCluster, nil
}
