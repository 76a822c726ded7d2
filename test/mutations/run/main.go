// SPDX-License-Identifier: Apache-2.0

// Command run applies one mutation after the other to a copy of HEAD and checks that the spec and the test of the
// mutation fail with the expected message. The copy does not contain uncommitted changes.
//
// The specs run on the cluster of "make kind-up". Each spec installs the mutated product; after the last one the
// command installs the product of HEAD again. It stores the outcomes in test/mutations/results.json and generates
// docs/mutations.md from that file after every mutation.
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

// Paths relative to the root of the checkout, which must be the working directory.
const (
	resultsFile = "test/mutations/results.json"
	reportFile  = "docs/mutations.md"
	junitFile   = "bin/reports/mutations.xml"
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
	pattern := flag.String("run", "", "run only the mutations with a name that matches this `regular expression`")
	wrapper := flag.String("exec", "", "prefix each command that uses the cluster with this `command` and its arguments, for example to hold a lock")
	tests := flag.Bool("tests", true, "run the Go tests, which need no cluster")
	specs := flag.Bool("specs", true, "run the specs on the cluster")
	repair := flag.Bool("repair", true, "install the product of HEAD on the cluster at the end; false keeps the last mutated product for inspection")
	report := flag.Bool("report", false, "only generate docs/mutations.md from the stored results")
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
		if err := copied.remove(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "mutations:", err)
		}
	}()
	var undetected []string
	var junit suite
	for _, mutation := range all {
		if !selected.MatchString(mutation.Name) {
			continue
		}
		result, err := copied.try(ctx, mutation, *tests, *specs)
		if err != nil {
			junit.addError(mutation.Name, err)
			return errors.Join(fmt.Errorf("mutation %s: %w", mutation.Name, err), junit.write(junitFile), copied.repair(ctx))
		}
		fmt.Printf("%s (%s)\n  test: %s\n  spec: %s\n", mutation.Name, mutation.Breaks, result.Test, result.Spec)
		if !result.Test.ran() && !result.Spec.ran() {
			continue // -tests or -specs excluded everything that this mutation has
		}
		if !result.detected() {
			undetected = append(undetected, mutation.Name)
		}
		results.add(mutation.Name, result)
		junit.add(mutation.Name, result)
		if err := errors.Join(junit.write(junitFile), results.write(resultsFile), results.writeReport(reportFile, all)); err != nil {
			return err
		}
	}
	if err := copied.repair(ctx); err != nil {
		return err
	}
	if len(undetected) > 0 {
		return fmt.Errorf("no failure, or a failure without the expected message: %s", strings.Join(undetected, ", "))
	}
	return nil
}
