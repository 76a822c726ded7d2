// SPDX-License-Identifier: Apache-2.0

// Command registry-cache is the cache server: a pull-through cache of one upstream. The subcommand serve runs the
// server, the subcommand inspect reports the content of a volume.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	// The container image contains no root certificates.
	_ "golang.org/x/crypto/x509roots/fallback"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
)

// version is set by the linker: -X main.version=<version>.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "registry-cache:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "registry-cache",
		Short:         "Pull-through cache of one upstream registry",
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(serveCommand(), inspectCommand())
	return root
}

func serveCommand() *cobra.Command {
	var configFile string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve the registry API until SIGTERM or SIGINT",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serve(cmd.Context(), configFile)
		},
	}
	cmd.Flags().StringVar(&configFile, "config", "", "configuration file (YAML, required)")
	return cmd
}

func serve(ctx context.Context, configFile string) error {
	if configFile == "" {
		return errors.New("--config: required, must be the path of the configuration file")
	}
	cfg, err := config.Load(configFile)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	limitMemory(ctx, log)
	server, err := cacheserver.New(cfg, cacheserver.Options{
		Version: version,
		Logger:  log,
		Size:    config.NewSizeFile(configFile, cfg.Storage.Size, log).Get,
	})
	if err != nil {
		return err
	}
	return server.Run(ctx)
}
