// SPDX-License-Identifier: Apache-2.0

// Command runs processes recorded benchmark runs. Its working directory must be the root of the repository.
//
//	check    compares the ratios of a run with the range file
//	page     renders report.html, a page with all charts, and bench.txt, the input of benchstat, into bin/bench/<run>
//	store    replaces the stored run in docs/benchmarks and the range file, and runs publish
//	publish  generates the published pages from the stored run
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
		return errors.New("missing command: must be check, page, store or publish")
	}
	flags := flag.NewFlagSet("runs "+args[0], flag.ContinueOnError)
	dir := flags.String("run", "", "`folder` of the run, which contains results.json")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if args[0] != "publish" && *dir == "" {
		return fmt.Errorf("%s: -run is missing: must be the folder of a run, for example bin/bench/20261125T095839Z", args[0])
	}
	const root = "."
	switch args[0] {
	case "check":
		return check(root, *dir)
	case "page":
		return page(root, *dir)
	case "store":
		return store(root, *dir)
	case "publish":
		return publish(root)
	}
	return fmt.Errorf("unknown command %q: must be check, page, store or publish", args[0])
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
