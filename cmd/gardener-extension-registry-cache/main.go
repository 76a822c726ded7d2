// SPDX-License-Identifier: Apache-2.0

// Command gardener-extension-registry-cache is the Gardener extension that deploys pull-through registry caches to
// Shoots. The subcommand controller runs in a Seed, the subcommand admission in the runtime cluster of the Garden.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/manager/signals"

	_ "github.com/registry-cache/extension/pkg/logfilter" // removes a log line of a dependency
)

// version is set by the linker (-X main.version=<version>). It is also the default tag of the cache server's image.
var version = "dev"

func main() {
	root := &cobra.Command{
		Use:           "gardener-extension-registry-cache",
		Short:         "Gardener extension for pull-through registry caches in Shoots",
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(newControllerCommand(), newAdmissionCommand())
	if err := root.ExecuteContext(signals.SetupSignalHandler()); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}
