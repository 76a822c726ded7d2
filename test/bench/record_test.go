// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/registry-cache/extension/test/bench/result"
)

// After a failure, the values of the failed scenario and of all other scenarios are in the results.
func TestRecordContinuesAfterAFailure(t *testing.T) {
	t.Parallel()
	measured := func(name string, err error) scenario {
		return scenario{name, "", time.Minute, func(_ context.Context, b *bench) error {
			b.results.Add(name+"/all", ours, "s", 1)
			return err
		}}
	}
	b := &bench{dir: t.TempDir()}
	first := measured("first", nil)
	// The results must be on disk before the next scenario starts.
	second := measured("second", errors.New("no disk"))
	var onDisk *result.Run
	inner := second.run
	second.run = func(ctx context.Context, b *bench) error {
		var err error
		if onDisk, err = result.Read(b.dir); err != nil {
			t.Error(err)
		}
		return inner(ctx, b)
	}
	err := b.record(t.Context(), []scenario{first, second, measured("third", nil)}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "scenario second failed: no disk") || strings.Contains(err.Error(), "third") {
		t.Errorf("the error is %v, want one that names the second scenario only", err)
	}
	if onDisk == nil || len(onDisk.Get("first/all", ours, "s").Values) != 1 {
		t.Errorf("before the second scenario there was %+v", onDisk)
	}
	got, err := result.Read(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"first", "second", "third"} {
		if len(got.Get(name+"/all", ours, "s").Values) != 1 {
			t.Errorf("the values of scenario %s are missing: %+v", name, got)
		}
	}
	if got.Scenarios[1].Error != "no disk" {
		t.Errorf("the results have %+v", got.Scenarios)
	}
	if content, err := os.ReadFile(filepath.Join(b.dir, "summary.md")); err != nil || !strings.Contains(string(content), "no disk") {
		t.Errorf("summary.md does not report the failure: %v\n%s", err, content)
	}
}

func TestRecordStopsAtAnInterrupt(t *testing.T) {
	t.Parallel()
	interrupted := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	b := &bench{dir: t.TempDir()}
	err := b.record(ctx, []scenario{
		{"first", "", time.Minute, func(context.Context, *bench) error { cancel(interrupted); return nil }},
		{"second", "", time.Minute, func(context.Context, *bench) error { t.Error("it ran"); return nil }},
	}, io.Discard)
	if !errors.Is(err, interrupted) || !strings.Contains(err.Error(), "second did not start") {
		t.Errorf("the error is %v", err)
	}
}

func TestScenarioIsBounded(t *testing.T) {
	t.Parallel()
	b := &bench{dir: t.TempDir()}
	err := b.record(t.Context(), []scenario{{"endless", "", time.Millisecond, func(ctx context.Context, _ *bench) error {
		<-ctx.Done()
		return context.Cause(ctx)
	}}}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "scenario endless takes longer than 1ms") {
		t.Errorf("the error is %v", err)
	}
}

func TestSelectScenarios(t *testing.T) {
	t.Parallel()
	if got := names(selectScenarios(scenarios, regexp.MustCompile("^(herd|tag)$"))); got != "herd, tag" {
		t.Errorf("selected %s", got)
	}
	if err := run(t.Context(), []string{"-run", "nothing-of-this-name"}); err == nil || !strings.Contains(err.Error(), "matches no scenario of herd") {
		t.Errorf("the error is %v", err)
	}
}
