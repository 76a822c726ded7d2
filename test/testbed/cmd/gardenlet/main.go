// SPDX-License-Identifier: Apache-2.0

// Command gardenlet does the gardenlet's part in a testbed cluster. It runs as a pod there; "make kind-up" installs it.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	_ "github.com/registry-cache/extension/pkg/logfilter" // removes a log line of a dependency
	"github.com/registry-cache/extension/test/testbed/gardenlet"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var (
		options                                     gardenlet.Options
		kubeconfig, cgroupDriver, healthBindAddress string
	)
	cmd := &cobra.Command{
		Use: "gardenlet", Short: "Do the gardenlet's part for the Shoots of this cluster", Args: cobra.NoArgs,
		SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if options.Kubeconfig, err = os.ReadFile(kubeconfig); err != nil {
				return err
			}
			options.Containerd.CgroupDriver = extensionsv1alpha1.CgroupDriverName(cgroupDriver)
			return run(cmd.Context(), options, healthBindAddress)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&options.Version, "gardener-version", "", "version of Gardener, for the status of Shoots")
	flags.StringVar(&kubeconfig, "shoot-kubeconfig", "", "file with the kubeconfig that extensions get for the Shoot")
	flags.StringVar(&options.Containerd.SandboxImage, "sandbox-image", "", "sandbox image of the nodes' containerd")
	flags.StringVar(&cgroupDriver, "cgroup-driver", "", "cgroup driver of the nodes' containerd: systemd or cgroupfs")
	flags.StringVar(&healthBindAddress, "health-bind-address", ":8081", "address of /healthz and /readyz")
	for _, flag := range []string{"gardener-version", "shoot-kubeconfig", "sandbox-image", "cgroup-driver"} {
		if err := cmd.MarkFlagRequired(flag); err != nil {
			panic(err) // a flag that does not exist is a mistake above
		}
	}
	return cmd
}

func run(ctx context.Context, options gardenlet.Options, healthBindAddress string) error {
	handler := slog.NewTextHandler(os.Stderr, nil)
	log.SetLogger(logr.FromSlogHandler(handler))
	klog.SetSlogLogger(slog.New(handler))

	config, err := rest.InClusterConfig()
	if err != nil {
		return fmt.Errorf("finding the API server: %w", err)
	}
	config.QPS, config.Burst = 100, 200
	scheme := gardenlet.Scheme()
	mgr, err := manager.New(config, manager.Options{
		Scheme: scheme,
		// The flow reads what it has just written.
		NewClient: func(config *rest.Config, options client.Options) (client.Client, error) {
			options.Cache = nil
			return client.New(config, options)
		},
		Metrics:                metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress: healthBindAddress,
	})
	if err != nil {
		return err
	}
	if err := mgr.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return err
	}
	if err := mgr.AddReadyzCheck("ping", healthz.Ping); err != nil {
		return err
	}
	if err := gardenlet.Add(mgr, options); err != nil {
		return err
	}
	return mgr.Start(ctx)
}
