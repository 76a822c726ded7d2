// SPDX-License-Identifier: Apache-2.0

// Package result defines the results of one benchmark run, and reads and writes their file, results.json.
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

// Engines: a direct pull without a cache, the stock registry, nginx with proxy_cache, which verifies no digest, and the cache
// server of this project. Scenarios with nodes also use the states in state.go as engines.
const (
	Direct = "direct"
	Stock  = "stock"
	Nginx  = "nginx"
	Ours   = "ours"
)

// File is the name of the file with all results, in the folder of a run.
const File = "results.json"

// Run is one run. It is not safe for concurrent use.
type Run struct {
	Host   Host `json:"host"`
	Rounds int  `json:"rounds"`
	// Quick marks a run with reduced loads. Its values must not be compared.
	Quick bool `json:"quick"`
	// Scenarios are the selected scenarios, in order of execution. Files of older versions have none.
	Scenarios []Scenario `json:"scenarios,omitempty"`
	Measured  []Series   `json:"measured"`
}

// Scenario describes one scenario and its outcome.
type Scenario struct {
	// Name is the first part of the names of its series.
	Name string `json:"name"`
	// Description is a short text for the report.
	Description string `json:"asks"`
	// Seconds is the duration; 0 if the scenario did not start.
	Seconds float64 `json:"seconds"`
	// Done is true if the scenario ended, with or without an error.
	Done bool `json:"done"`
	// Error is the reason of a failure; empty without a failure. Values that were measured before it are in the run.
	Error string `json:"error,omitempty"`
}

// Series contains the values of one measurement, one for each round.
type Series struct {
	// Name is "scenario/parameters".
	Name   string `json:"name"`
	Engine string `json:"engine"`
	// Unit is a unit in the format of benchstat, for example "s", "B", "req/cpu-s".
	Unit   string    `json:"unit"`
	Values []float64 `json:"values"`
}

// Host describes the machine and the versions of a run.
type Host struct {
	Commit    string `json:"commit"`
	GoVersion string `json:"goVersion"`
	Kernel    string `json:"kernel"`
	CPU       string `json:"cpu"`
	CPUs      int    `json:"cpus"`
	MemoryKiB int64  `json:"memoryKiB"`
	// System is the name and version of the Linux distribution.
	System string `json:"system,omitempty"`
	// Distribution is the version of the stock registry.
	Distribution string `json:"distribution,omitempty"`
	// Containerd contains the versions of containerd in scenarios with nodes.
	Containerd []string `json:"containerd,omitempty"`
}

// Add appends a value to a series, and creates the series if necessary.
func (r *Run) Add(name, engine, unit string, value float64) {
	for i, s := range r.Measured {
		if s.Name == name && s.Engine == engine && s.Unit == unit {
			r.Measured[i].Values = append(s.Values, value)
			return
		}
	}
	r.Measured = append(r.Measured, Series{name, engine, unit, []float64{value}})
}

// Get returns a series. It has no values if it was not measured.
func (r *Run) Get(name, engine, unit string) Series {
	for _, s := range r.Measured {
		if s.Name == name && s.Engine == engine && s.Unit == unit {
			return s
		}
	}
	return Series{Name: name, Engine: engine, Unit: unit}
}

// Selected reports whether the run included the scenario of a series.
func (r *Run) Selected(series string) bool {
	scenario, _, _ := strings.Cut(series, "/")
	if len(r.Scenarios) == 0 {
		return slices.ContainsFunc(r.Measured, func(s Series) bool { return strings.HasPrefix(s.Name, scenario+"/") })
	}
	return slices.ContainsFunc(r.Scenarios, func(s Scenario) bool { return s.Name == scenario })
}

// Failed returns an error that lists the scenarios that failed or did not start, or nil.
func (r *Run) Failed() error {
	var errs []error
	for _, s := range r.Scenarios {
		switch {
		case s.Error != "":
			errs = append(errs, fmt.Errorf("scenario %s failed: %s", s.Name, s.Error))
		case !s.Done:
			errs = append(errs, fmt.Errorf("scenario %s did not start", s.Name))
		}
	}
	return errors.Join(errs...)
}

// Median returns NaN for a series without values.
func (s Series) Median() float64 { return Percentile(s.Values, 50) }

// Percentile returns the p-th percentile of the values, p in 0 – 100: the value whose rank is nearest to p/100·(n-1),
// without interpolation. It returns NaN without values.
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

// Write writes results.json into the folder. It replaces an existing file atomically.
func (r *Run) Write(dir string) error {
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return WriteFile(filepath.Join(dir, File), append(content, '\n'))
}

// Benchmarks returns the results in the format of Go benchmarks, which benchstat reads
// (https://golang.org/design/14313-benchmark-format).
func (r *Run) Benchmarks() []byte {
	var text strings.Builder
	fmt.Fprintf(&text, "goos: %s\ngoarch: %s\ncpu: %s\ncommit: %s\n", runtime.GOOS, runtime.GOARCH, r.Host.CPU, r.Host.Commit)
	for _, s := range r.Measured {
		for _, value := range s.Values {
			fmt.Fprintf(&text, "Benchmark%s/engine=%s 1 %g %s\n", strings.ToUpper(s.Name[:1])+s.Name[1:], s.Engine, value, s.Unit)
		}
	}
	return []byte(text.String())
}

// WriteFile replaces a file atomically, so that an interrupt leaves no partial file.
func WriteFile(path string, content []byte) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, content, 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
