// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/registry-cache/extension/pkg/cacheserver/config"
	"github.com/registry-cache/extension/pkg/cacheserver/inspect"
	"github.com/registry-cache/extension/pkg/contract"
)

// inspectOptions are the flags of the subcommand inspect.
type inspectOptions struct {
	configFile string // empty: the default configuration
	output     string // "table" or "json"
	// overrides replace values of the configuration by those of the flags on the command line.
	overrides []func(*config.Config)
}

func inspectCommand() *cobra.Command {
	var o inspectOptions
	var root string
	var ttl time.Duration
	var high, low int
	cmd := &cobra.Command{
		Use:   "inspect",
		Short: "Report the content of a volume and its next evictions",
		Long: `Report the content of a volume: its images, the objects that belong to no image, and the used space. For each object,
the report contains the last use, the time and the reason of its eviction, and the number of objects that are evicted
before it.

The command only reads the volume. A cache server may use the volume at the same time. The volume may also be one that a
stock registry has filled.`,
		Example: `  registry-cache inspect --config /etc/registry-cache/config.yaml
  registry-cache inspect --root /mnt/volume --ttl 168h -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for name, set := range map[string]func(*config.Config){
				"root":           func(c *config.Config) { c.Storage.Root = root },
				"ttl":            func(c *config.Config) { c.GarbageCollection.TTL = config.Duration(ttl) },
				"high-watermark": func(c *config.Config) { c.Storage.HighWatermark = high },
				"low-watermark":  func(c *config.Config) { c.Storage.LowWatermark = low },
			} {
				if cmd.Flags().Changed(name) {
					o.overrides = append(o.overrides, set)
				}
			}
			// The default of the low watermark depends on the high one. A configuration file already contains its result, which
			// a flag for the high watermark does not change.
			if cmd.Flags().Changed("high-watermark") && !cmd.Flags().Changed("low-watermark") && o.configFile == "" {
				o.overrides = append(o.overrides, func(c *config.Config) { c.Storage.LowWatermark = contract.DefaultLowWatermark(high) })
			}
			cfg, write, err := o.complete()
			if err != nil {
				return err
			}
			report, err := inspect.Inspect(cmd.Context(), cfg.Storage.Root, cfg.Limits(), time.Now())
			if err != nil {
				return err
			}
			return write(report, cmd.OutOrStdout())
		},
	}
	defaults := config.Default()
	flags := cmd.Flags()
	flags.StringVar(&o.configFile, "config", "", "configuration file of the cache server (YAML); the other flags override its values")
	flags.StringVar(&root, "root", defaults.Storage.Root, "directory of the volume")
	flags.DurationVar(&ttl, "ttl", time.Duration(defaults.GarbageCollection.TTL), "duration after the last use of an object at which it expires; 0s disables garbage collection")
	flags.IntVar(&high, "high-watermark", defaults.Storage.HighWatermark, "percentage of used space on the volume at which eviction starts")
	flags.IntVar(&low, "low-watermark", defaults.Storage.LowWatermark, "percentage of used space on the volume at which eviction stops; without --config, 10 less than --high-watermark by default")
	flags.StringVarP(&o.output, "output", "o", "table", "output format: table or json")
	return cmd
}

// complete validates the flags. It returns the configuration with the overrides applied, and the function that writes
// the report.
func (o inspectOptions) complete() (cfg config.Config, write func(*inspect.Report, io.Writer) error, err error) {
	switch o.output {
	case "table":
		write = (*inspect.Report).WriteTable
	case "json":
		write = (*inspect.Report).WriteJSON
	default:
		return cfg, nil, fmt.Errorf(`--output: unsupported value %q: supported values: "table", "json"`, o.output)
	}
	cfg = config.Default()
	if o.configFile != "" {
		if cfg, err = config.Load(o.configFile); err != nil {
			return cfg, nil, err
		}
	}
	for _, set := range o.overrides {
		set(&cfg)
	}
	if cfg.Storage.Root == "" {
		return cfg, nil, fmt.Errorf("--root: must be the directory of the volume, for example %s", config.Default().Storage.Root)
	}
	if err := cfg.ValidateLimits(); err != nil {
		return cfg, nil, fmt.Errorf("invalid --high-watermark, --low-watermark or --ttl: %w", err)
	}
	return cfg, write, nil
}
