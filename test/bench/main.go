// SPDX-License-Identifier: Apache-2.0

// Command bench measures the cache server beside the stock registry of the distribution project and beside no cache at
// all: on one machine, in one run, with the engines in turn.
//
//	generate  builds the programs and makes the content
//	record    runs the scenarios and writes results.json and bench.txt (for benchstat) into the folder of the run
//	report    draws them: summary.md, which holds them against the targets, and report.html
//
// All files are written after each scenario. One that fails is named in them and in the exit status; those after it run
// all the same. The command in the folder runs works with what was recorded.
//
// Each engine is a process of its own on one processor; the upstream registry and the clients share the others. The
// scenarios stale, nodestart and unit are about nodes: they run on the kind-based Shoot, which is made where there is none
// and stays.
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
	// What libraries log is in the files of the programs that they start.
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
	output := flags.String("output", filepath.Join("bin", "bench"), "`folder` of the runs; each gets one of its own in it")
	only := flags.String("run", "", "`pattern` of the scenarios to run; empty means all")
	rounds := flags.Int("rounds", 3, "how `often` each measurement is made, the engines in turn; what takes minutes is made less often")
	quick := flags.Bool("quick", false, "smaller loads and one round: shows that everything runs, proves no figure")
	if err := flags.Parse(args); err != nil {
		return err
	}
	pattern, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if *rounds < 1 {
		return fmt.Errorf("-rounds is %d: give 1 or more", *rounds)
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

// scenario is one question. Its name selects it and begins the names of its results.
type scenario struct {
	name, asks string
	// most is how long it may take.
	most time.Duration
	run  func(context.Context, *bench) error
}

var scenarios = []scenario{
	{"herd", "many clients pull one cold blob", 8 * time.Minute, herd},
	{"readers", "memory for slow readers", 5 * time.Minute, slowReaders},
	{"manifest", "cost of a stored manifest", 5 * time.Minute, warmManifest},
	{"blob", "cost of a stored blob", 10 * time.Minute, warmBlob},
	{"cold", "first pull beside no cache", 12 * time.Minute, coldPull},
	{"tag", "cost of a tag that does not change", 5 * time.Minute, warmTag},
	{"start", "start on a full volume", 8 * time.Minute, startOnFullVolume},
	{"kill", "kill -9 in the middle of a herd, on a full volume", 8 * time.Minute, killedInHerd},
	{"disk", "hits on a volume that is too small", 8 * time.Minute, diskPressure},
	{"evict", "latency while much is deleted", 2 * evictTimeout, evictWhileServing},
	{"controller", "what the controller takes for many Shoots", 12 * time.Minute, controllerCost},
	{"stale", "pulls on a node in each state of the world", 30 * time.Minute, stalePulls},
	{"nodestart", "images of what runs on every node, on nodes that start", 15 * time.Minute, nodeStart},
	{"unit", "what the node's unit notices, and costs", 15 * time.Minute, nodeUnit},
}
