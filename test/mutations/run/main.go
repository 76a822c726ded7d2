// SPDX-License-Identifier: Apache-2.0

// Command run breaks the product on purpose, one mutation after the other, and shows that the right spec and the right
// test fail for the right reason. It works on a copy of HEAD; what is not committed is not in it.
//
// The specs run on the cluster of "make kind-up", which gets each broken product, and at last the product of HEAD again.
// What was found out is added to the file of results, from which the report is written.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"

	"github.com/registry-cache/extension/test/mutations"
)

// Both are relative to the root of the checkout, where the command is run.
const (
	resultsFile = "test/mutations/results.json"
	reportFile  = "docs/mutations.md"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "mutations:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	pattern := flag.String("run", "", "a regular expression; mutations with another name are left out")
	wrapper := flag.String("exec", "", "a command, with arguments, that runs each command which uses the cluster; one that takes a lock, for example")
	tests := flag.Bool("tests", true, "run the tests, which need no cluster")
	specs := flag.Bool("specs", true, "run the specs on the cluster")
	repair := flag.Bool("repair", true, "install the product of HEAD again at last, instead of leaving the broken one to look at")
	report := flag.Bool("report", false, "only write the report of the results that are there")
	flag.Parse()
	selected, err := regexp.Compile(*pattern)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	all, err := mutations.Load()
	if err != nil {
		return err
	}
	results, err := readResults(resultsFile)
	if err != nil {
		return err
	}
	if *report {
		return results.writeReport(reportFile, all)
	}

	copied, err := newCopy(ctx, strings.Fields(*wrapper), *repair)
	if err != nil {
		return err
	}
	defer func() {
		if err := copied.remove(); err != nil {
			fmt.Fprintln(os.Stderr, "mutations:", err)
		}
	}()
	var missed []string
	for _, mutation := range all {
		if !selected.MatchString(mutation.Name) {
			continue
		}
		result, err := copied.try(ctx, mutation, *tests, *specs)
		if err != nil {
			return errors.Join(fmt.Errorf("mutation %s: %w", mutation.Name, err), copied.repair())
		}
		fmt.Printf("%s (%s)\n  test: %s\n  spec: %s\n", mutation.Name, mutation.Breaks, result.Test, result.Spec)
		if !result.Test.ran() && !result.Spec.ran() {
			continue // what would notice was left out
		}
		if !result.noticed() {
			missed = append(missed, mutation.Name)
		}
		results.add(mutation.Name, result)
		if err := errors.Join(results.write(resultsFile), results.writeReport(reportFile, all)); err != nil {
			return err
		}
	}
	if err := copied.repair(); err != nil {
		return err
	}
	if len(missed) > 0 {
		return fmt.Errorf("not noticed, or not for the right reason: %s", strings.Join(missed, ", "))
	}
	return nil
}
