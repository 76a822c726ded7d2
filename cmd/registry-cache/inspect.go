// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/registry-cache/extension/pkg/cacheserver/config"
	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/inspect"
)

// inspectOptions are the flags of inspect.
type inspectOptions struct {
	configFile, output string
	// override has what was given beside the configuration file.
	override []func(*config.Config)
}

func inspectCommand() *cobra.Command {
	var o inspectOptions
	var root string
	var ttl time.Duration
	var high, low int
	cmd := &cobra.Command{
		Use:   "inspect",
		Short: "Print what a volume holds, and what will be deleted from it, when and why",
		Long: `Print what a volume holds: images, what belongs to no image, and how full it is. For each object it tells when it was
last used and when it will be deleted, why, and after how many others.

The volume is only read. A server may use it meanwhile, and a stock registry may have filled it.`,
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
					o.override = append(o.override, set)
				}
			}
			cfg, write, err := o.complete()
			if err != nil {
				return err
			}
			report, err := inspect.Inspect(cmd.Context(), cfg.Storage.Root, evict.Policy{
				TTL:           time.Duration(cfg.GarbageCollection.TTL),
				HighWatermark: cfg.Storage.HighWatermark,
				LowWatermark:  cfg.Storage.LowWatermark,
			}, time.Now())
			if err != nil {
				return err
			}
			return write(report, cmd.OutOrStdout())
		},
	}
	defaults := config.Default()
	flags := cmd.Flags()
	flags.StringVar(&o.configFile, "config", "", "configuration file of the server (YAML), for the flags that are not given")
	flags.StringVar(&root, "root", defaults.Storage.Root, "folder of the volume")
	flags.DurationVar(&ttl, "ttl", time.Duration(defaults.GarbageCollection.TTL), "time since its last use after which an object is deleted; 0s: never delete anything")
	flags.IntVar(&high, "high-watermark", defaults.Storage.HighWatermark, "used share of the volume, in percent, at which eviction starts")
	flags.IntVar(&low, "low-watermark", defaults.Storage.LowWatermark, "used share of the volume, in percent, at which eviction ends")
	flags.StringVarP(&o.output, "output", "o", "table", "table or json")
	return cmd
}

// complete returns the configuration that counts, and how the report is written.
func (o inspectOptions) complete() (cfg config.Config, write func(*inspect.Report, io.Writer) error, err error) {
	switch o.output {
	case "table":
		write = (*inspect.Report).WriteTable
	case "json":
		write = (*inspect.Report).WriteJSON
	default:
		return cfg, nil, fmt.Errorf("--output %q: write table or json", o.output)
	}
	cfg = config.Default()
	if o.configFile != "" {
		if cfg, err = config.Load(o.configFile); err != nil {
			return cfg, nil, err
		}
	}
	for _, set := range o.override {
		set(&cfg)
	}
	if cfg.Storage.Root == "" {
		return cfg, nil, fmt.Errorf("--root must name the folder of the volume, such as %s", config.Default().Storage.Root)
	}
	if err := cfg.ValidatePolicy(); err != nil {
		return cfg, nil, fmt.Errorf("--high-watermark, --low-watermark or --ttl: %w", err)
	}
	return cfg, write, nil
}
