// SPDX-License-Identifier: Apache-2.0

// Command volumes is the CSI driver of the testbed: volumes with a real size limit on the disk of a node.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/registry-cache/extension/test/testbed/volumes/csidriver"
	"github.com/registry-cache/extension/test/testbed/volumes/disk"
	"github.com/registry-cache/extension/test/testbed/volumes/provisioner"
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
	root := &cobra.Command{
		Use: "volumes", Short: "CSI driver of the testbed", SilenceUsage: true, SilenceErrors: true,
	}
	root.AddCommand(nodeCommand(), controllerCommand())
	return root
}

// nodeOptions are the flags of "volumes node".
type nodeOptions struct {
	name, endpoint, kubeletDir, disksDir string
}

func nodeCommand() *cobra.Command {
	var o nodeOptions
	cmd := &cobra.Command{
		Use: "node", Short: "Serve, provision and delete the volumes of one node", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runNode(cmd.Context(), o) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.name, "node-name", "", "name of the Node")
	flags.StringVar(&o.endpoint, "csi-endpoint", "", "socket to serve on, as the kubelet sees it: unix:///path")
	flags.StringVar(&o.kubeletDir, "kubelet-dir", "/var/lib/kubelet", "root folder of the kubelet")
	flags.StringVar(&o.disksDir, "disks-dir", "/var/lib/registry-cache-testbed/volumes", "folder for the volumes")
	return require(cmd, "node-name", "csi-endpoint")
}

func runNode(ctx context.Context, o nodeOptions) error {
	log := newLogger()
	config, err := rest.InClusterConfig()
	if err != nil {
		return fmt.Errorf("finding the API server: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	disks, err := disk.Open(o.disksDir)
	if err != nil {
		return err
	}
	live, err := provisioner.Live(ctx, client, o.name)
	if err != nil {
		return err
	}
	if err := csidriver.RemoveOrphans(log, disks, o.kubeletDir, live); err != nil {
		return fmt.Errorf("removing orphans: %w", err)
	}

	driver, err := csidriver.Listen(o.endpoint)
	if err != nil {
		return err
	}
	registration, err := csidriver.Listen(filepath.Join(o.kubeletDir, "plugins_registry", csidriver.RegistrationSocket))
	if err != nil {
		return errors.Join(err, driver.Close())
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return csidriver.Serve(ctx, log, driver, func(server grpc.ServiceRegistrar) {
			csi.RegisterIdentityServer(server, &csidriver.Identity{})
			csi.RegisterNodeServer(server, csidriver.NewNode(o.name, disks))
		})
	})
	group.Go(func() error {
		return csidriver.Serve(ctx, log, registration, func(server grpc.ServiceRegistrar) {
			registerapi.RegisterRegistrationServer(server, &csidriver.Registration{Endpoint: driver.Addr().String(), Log: log})
		})
	})
	group.Go(func() error {
		provisioner.New(o.name, disks).Run(ctx, client)
		return nil
	})
	return group.Wait()
}

func controllerCommand() *cobra.Command {
	var endpoint string
	cmd := &cobra.Command{
		Use: "controller", Short: "Tell the external-resizer what the driver can do", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runController(cmd.Context(), endpoint) },
	}
	cmd.Flags().StringVar(&endpoint, "csi-endpoint", "", "socket to serve on: unix:///path")
	return require(cmd, "csi-endpoint")
}

func runController(ctx context.Context, endpoint string) error {
	listener, err := csidriver.Listen(endpoint)
	if err != nil {
		return err
	}
	return csidriver.Serve(ctx, newLogger(), listener, func(server grpc.ServiceRegistrar) {
		csi.RegisterIdentityServer(server, &csidriver.Identity{Controller: true})
		csi.RegisterControllerServer(server, &csidriver.Controller{})
		csi.RegisterNodeServer(server, &csidriver.NodeCapabilities{})
	})
}

// newLogger returns the logger of this process; the libraries of Kubernetes log to it, too.
func newLogger() *slog.Logger {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	klog.SetSlogLogger(log)
	return log
}

// require marks flags as required. It panics for a flag that does not exist, which is a mistake in this file.
func require(cmd *cobra.Command, flags ...string) *cobra.Command {
	for _, flag := range flags {
		if err := cmd.MarkFlagRequired(flag); err != nil {
			panic(err)
		}
	}
	return cmd
}
