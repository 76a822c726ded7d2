// SPDX-License-Identifier: Apache-2.0

// Command runs works with runs of the benchmarks that are recorded.
//
//	check    holds the ratios of a run against the range file
//	store    makes a run the one that the repository shows and compares with: the folder below docs/benchmarks, the range
//	         file, and the README's part
//	publish  makes what is generated from the stored run anew
//
// It runs in the root of the repository.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/registry-cache/extension/test/bench/ranges"
	"github.com/registry-cache/extension/test/bench/result"
)

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "runs:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("give a command: check, store or publish")
	}
	flags := flag.NewFlagSet("runs "+args[0], flag.ContinueOnError)
	dir := flags.String("run", "", "`folder` of the run, with its results.json")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if args[0] != "publish" && *dir == "" {
		return fmt.Errorf("%s: -run is missing: give the folder of a run, such as bin/bench/20261125T095839Z", args[0])
	}
	const root = "."
	switch args[0] {
	case "check":
		return check(root, *dir)
	case "store":
		return store(root, *dir)
	case "publish":
		return publish(root)
	}
	return fmt.Errorf("%s is no command: give check, store or publish", args[0])
}

// rangeFile is relative to the root of the repository.
var rangeFile = filepath.Join("test", "bench", "ranges.yaml")

func check(root, dir string) error {
	r, err := result.Read(dir)
	if err != nil {
		return err
	}
	want, err := ranges.Read(filepath.Join(root, rangeFile))
	if err != nil {
		return err
	}
	return want.Check(r, os.Stdout)
}
