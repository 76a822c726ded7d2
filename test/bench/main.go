// Command bench measures the cache server beside the stock registry of the distribution project and beside no cache at
// all: on one machine, in one run, with the engines in turn.
//
//	generate  builds the programs and makes the content
//	record    runs the scenarios and writes results.json and bench.txt (for benchstat) into the folder of the run
//	check     holds the results against the targets and writes summary.md
//
// Each engine is a process of its own on one processor; the upstream registry and the clients share the others. The
// scenarios stale and unit are about nodes: they run on the kind-based Shoot, which is made where there is none and stays.
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
)

func main() {
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
	rounds := flags.Int("rounds", 5, "how `often` each measurement is made, the engines in turn")
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
	b, err := generate(ctx, *output, *rounds, *quick)
	if err != nil {
		return fmt.Errorf("generating: %w", err)
	}
	defer func() { err = errors.Join(err, b.close(err == nil)) }()
	for _, s := range scenarios {
		if !pattern.MatchString(s.name) {
			continue
		}
		began := time.Now()
		if err := s.run(ctx, b); err != nil {
			return fmt.Errorf("recording %s: %w", s.name, err)
		}
		fmt.Printf("%-10s %4.0f s\n", s.name, time.Since(began).Seconds())
	}
	if err := b.results.write(b.dir); err != nil {
		return fmt.Errorf("recording: %w", err)
	}
	summary := b.results.summary()
	if err := os.WriteFile(filepath.Join(b.dir, "summary.md"), []byte(summary), 0o644); err != nil {
		return fmt.Errorf("checking: %w", err)
	}
	fmt.Printf("\n%s\nin %s\n", summary, b.dir)
	return nil
}

// scenario is one question. Its name selects it and begins the names of its results.
type scenario struct {
	name string
	run  func(context.Context, *bench) error
}

var scenarios = []scenario{
	{"herd", herd},
	{"readers", slowReaders},
	{"manifest", warmManifest},
	{"blob", warmBlob},
	{"cold", coldPull},
	{"tag", warmTag},
	{"start", startOnFullVolume},
	{"evict", evictWhileServing},
	{"stale", stalePulls},
	{"unit", nodeUnit},
}
