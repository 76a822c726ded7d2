// SPDX-License-Identifier: Apache-2.0

// Command bench measures the cache server, the stock registry and direct pulls in one run on one machine. Each round
// measures the engines one after the other.
//
//	generate  builds the programs and creates the content of the upstream
//	record    runs the scenarios and writes results.json and summary.md into the folder of the run
//
// record writes both files after each scenario. If a scenario fails, both files contain its error, the next scenarios run,
// and the exit code is 1. The command in folder runs checks, publishes and renders recorded runs.
//
// Each engine is a process on its own processor. The upstream and the clients share the other processors. The scenarios
// stale, nodestart and unit use nodes of the kind-based Shoot. The command creates the Shoot if it does not exist, and does
// not delete it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

func main() {
	// The programs that libraries start have their own log files.
	ctrllog.SetLogger(logr.Discard())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	output := flags.String("output", filepath.Join("bin", "bench"), "`folder` that contains one folder for each run")
	only := flags.String("run", "", "regular `expression` that selects scenarios; empty selects all")
	rounds := flags.Int("rounds", 3, "`number` of repetitions of each measurement; measurements that take minutes are repeated less often")
	quick := flags.Bool("quick", false, "run one round with reduced loads, as a test of the scenarios; the values must not be compared")
	if err := flags.Parse(args); err != nil {
		return err
	}
	pattern, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if *rounds < 1 {
		return fmt.Errorf("-rounds is %d, must be at least 1", *rounds)
	}
	if *quick {
		*rounds = 1
	}
	selected := selectScenarios(scenarios, pattern)
	if len(selected) == 0 {
		return fmt.Errorf("-run is %q, which matches no scenario of %s", *only, names(scenarios))
	}
	b, err := generate(ctx, *output, *rounds, *quick)
	if err != nil {
		return fmt.Errorf("generating: %w", err)
	}
	defer func() { err = errors.Join(err, b.close(err == nil)) }()
	return b.record(ctx, selected, os.Stdout)
}

// scenario is a group of measurements. Its name selects it and is the first part of the names of its series.
type scenario struct {
	name, description string
	// most is the timeout.
	most time.Duration
	run  func(context.Context, *bench) error
}

var scenarios = []scenario{
	{"herd", "many clients pull one uncached blob concurrently", 8 * time.Minute, herd},
	{"readers", "memory with slow readers", 5 * time.Minute, slowReaders},
	{"manifest", "CPU time for a stored manifest", 5 * time.Minute, warmManifest},
	{"blob", "CPU time for a stored blob", 10 * time.Minute, warmBlob},
	{"cold", "first pull, compared with a direct pull", 12 * time.Minute, coldPull},
	{"proxy", "first pull, compared with nginx, which verifies no digest", 5 * time.Minute, coldProxy},
	{"tag", "requests and writes for an unchanged tag", 5 * time.Minute, warmTag},
	{"start", "start on a full volume", 8 * time.Minute, startOnFullVolume},
	{"kill", "SIGKILL during a herd, on a full volume", 8 * time.Minute, killedInHerd},
	{"disk", "cache hits on a volume that is too small", 8 * time.Minute, diskPressure},
	{"evict", "latency during the eviction of many blobs", 2 * evictTimeout, evictWhileServing},
	{"controller", "API requests, CPU time and memory of the controller for many Shoots", 12 * time.Minute, controllerCost},
	{"stale", "pulls on a node in each state of the cache", 30 * time.Minute, stalePulls},
	{"nodestart", "pulls of the images of system components on starting nodes", 15 * time.Minute, nodeStart},
	{"unit", "reaction times and CPU time of the unit on a node", 15 * time.Minute, nodeUnit},
}
