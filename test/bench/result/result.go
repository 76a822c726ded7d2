// SPDX-License-Identifier: Apache-2.0

// Package result is what a run of the benchmarks found out, and its files: results.json, and bench.txt in the format of
// Go's benchmarks.
package result

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Engines: no cache at all, the stock registry, and this project's server. Scenarios about nodes have states of the world
// as engines beside them.
const (
	Direct = "direct"
	Stock  = "stock"
	Ours   = "ours"
)

// File is the name of the file in the folder of a run that has everything.
const File = "results.json"

// Run is one run. It is not safe for concurrent use.
type Run struct {
	Host   Host `json:"host"`
	Rounds int  `json:"rounds"`
	// Quick runs prove no figure.
	Quick bool `json:"quick"`
	// Scenarios are those that were selected, in their order. Runs of old have none.
	Scenarios []Scenario `json:"scenarios,omitempty"`
	Measured  []Series   `json:"measured"`
}

// Scenario is one question, and how answering it ended.
type Scenario struct {
	// Name begins the names of its series.
	Name string `json:"name"`
	// Asks is the question, in a few words.
	Asks string `json:"asks"`
	// Seconds are what it took; 0 if it was not reached.
	Seconds float64 `json:"seconds"`
	// Done says that it came to its end, with an error or without.
	Done bool `json:"done"`
	// Error is why it failed; empty if it did not. What it measured before stays.
	Error string `json:"error,omitempty"`
}

// Series are the values of one measurement, one of each round.
type Series struct {
	// Name is "scenario/parameters".
	Name   string `json:"name"`
	Engine string `json:"engine"`
	// Unit is what benchstat takes: "s", "B", "req/cpu-s".
	Unit   string    `json:"unit"`
	Values []float64 `json:"values"`
}

// Host is where the run was, and of what versions.
type Host struct {
	Commit    string `json:"commit"`
	GoVersion string `json:"goVersion"`
	Kernel    string `json:"kernel"`
	CPU       string `json:"cpu"`
	CPUs      int    `json:"cpus"`
	MemoryKiB int64  `json:"memoryKiB"`
	// System is the distribution of Linux.
	System string `json:"system,omitempty"`
	// Distribution is the version of the stock registry.
	Distribution string `json:"distribution,omitempty"`
	// Containerd are the versions of containerd that pull in scenarios about nodes.
	Containerd []string `json:"containerd,omitempty"`
}

// Add records a value.
func (r *Run) Add(name, engine, unit string, value float64) {
	for i, s := range r.Measured {
		if s.Name == name && s.Engine == engine && s.Unit == unit {
			r.Measured[i].Values = append(s.Values, value)
			return
		}
	}
	r.Measured = append(r.Measured, Series{name, engine, unit, []float64{value}})
}

// Get returns a series, or none of the values if it was not measured.
func (r *Run) Get(name, engine, unit string) Series {
	for _, s := range r.Measured {
		if s.Name == name && s.Engine == engine && s.Unit == unit {
			return s
		}
	}
	return Series{Name: name, Engine: engine, Unit: unit}
}

// Selected says whether the scenario that a series belongs to was to run.
func (r *Run) Selected(series string) bool {
	scenario, _, _ := strings.Cut(series, "/")
	if len(r.Scenarios) == 0 {
		return slices.ContainsFunc(r.Measured, func(s Series) bool { return strings.HasPrefix(s.Name, scenario+"/") })
	}
	return slices.ContainsFunc(r.Scenarios, func(s Scenario) bool { return s.Name == scenario })
}

// Failed returns an error that names the scenarios that failed or were not reached, or nil.
func (r *Run) Failed() error {
	var errs []error
	for _, s := range r.Scenarios {
		switch {
		case s.Error != "":
			errs = append(errs, fmt.Errorf("scenario %s failed: %s", s.Name, s.Error))
		case !s.Done:
			errs = append(errs, fmt.Errorf("scenario %s was not reached", s.Name))
		}
	}
	return errors.Join(errs...)
}

// Median returns NaN where nothing was measured.
func (s Series) Median() float64 { return Percentile(s.Values, 50) }

// Percentile returns the value below which p percent of the values are, the nearest of them; NaN of none.
func Percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[int(math.Round(p/100*float64(len(sorted)-1)))]
}

// Read returns the run in a folder.
func Read(dir string) (*Run, error) {
	content, err := os.ReadFile(filepath.Join(dir, File))
	if err != nil {
		return nil, err
	}
	r := &Run{}
	if err := json.Unmarshal(content, r); err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(dir, File), err)
	}
	return r, nil
}

// Write makes the files in the folder. A reader sees each of them as it was before or is afterwards.
func (r *Run) Write(dir string) error {
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(
		WriteFile(filepath.Join(dir, File), append(content, '\n')),
		WriteFile(filepath.Join(dir, "bench.txt"), r.benchmarks()))
}

// benchmarks is the format of Go's benchmarks, for benchstat.
func (r *Run) benchmarks() []byte {
	var text strings.Builder
	fmt.Fprintf(&text, "goos: %s\ngoarch: %s\ncpu: %s\ncommit: %s\n", runtime.GOOS, runtime.GOARCH, r.Host.CPU, r.Host.Commit)
	for _, s := range r.Measured {
		for _, value := range s.Values {
			fmt.Fprintf(&text, "Benchmark%s/engine=%s 1 %g %s\n", strings.ToUpper(s.Name[:1])+s.Name[1:], s.Engine, value, s.Unit)
		}
	}
	return []byte(text.String())
}

// WriteFile replaces a file at once, so that an interrupt leaves no half of it.
func WriteFile(path string, content []byte) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, content, 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
