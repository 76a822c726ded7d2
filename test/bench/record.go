// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/registry-cache/extension/test/bench/report"
	"github.com/registry-cache/extension/test/bench/result"
)

func selectScenarios(all []scenario, pattern *regexp.Regexp) []scenario {
	var selected []scenario
	for _, s := range all {
		if pattern.MatchString(s.name) {
			selected = append(selected, s)
		}
	}
	return selected
}

func names(all []scenario) string {
	var names []string
	for _, s := range all {
		names = append(names, s.name)
	}
	return strings.Join(names, ", ")
}

// record runs the scenarios and writes the results after each of them. After a failure, it keeps the values that the
// scenario measured and continues with the next scenario. It stops when ctx ends. The error lists all scenarios that failed
// or did not start.
func (b *bench) record(ctx context.Context, selected []scenario, progress io.Writer) error {
	for _, s := range selected {
		b.results.Scenarios = append(b.results.Scenarios, result.Scenario{Name: s.name, Description: s.description})
	}
	for i, s := range selected {
		if ctx.Err() != nil {
			break
		}
		began := time.Now()
		err := runScenario(ctx, b, s)
		record := &b.results.Scenarios[i]
		record.Seconds, record.Done = time.Since(began).Seconds(), true
		outcome := "ok"
		if err != nil {
			record.Error = err.Error()
			outcome = "FAILED: " + record.Error
		}
		fmt.Fprintf(progress, "%-10s %4.0f s  %s\n", s.name, record.Seconds, outcome)
		if err := errors.Join(b.results.Write(b.dir), report.WriteSummary(&b.results, b.dir)); err != nil {
			return fmt.Errorf("writing the results after %s: %w", s.name, err)
		}
	}
	fmt.Fprintf(progress, "\n%s\nin %s\n", report.Summary(&b.results), b.dir)
	return errors.Join(context.Cause(ctx), b.results.Failed())
}

func runScenario(ctx context.Context, b *bench, s scenario) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.most, fmt.Errorf("scenario %s takes longer than %s", s.name, s.most))
	defer cancel()
	return s.run(ctx, b)
}
