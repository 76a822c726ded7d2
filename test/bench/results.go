package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// results is what a run found out; results.json has it as it is.
type results struct {
	Host   host `json:"host"`
	Rounds int  `json:"rounds"`
	// Quick runs prove no figure.
	Quick    bool     `json:"quick"`
	Measured []series `json:"measured"`
}

// series are the values of one measurement, one of each round.
type series struct {
	// Name is "scenario/parameters".
	Name   string `json:"name"`
	Engine string `json:"engine"`
	// Unit is what benchstat takes: "s", "B", "req/cpu-s".
	Unit   string    `json:"unit"`
	Values []float64 `json:"values"`
}

// host is where the run was.
type host struct {
	Commit    string `json:"commit"`
	GoVersion string `json:"goVersion"`
	Kernel    string `json:"kernel"`
	CPU       string `json:"cpu"`
	CPUs      int    `json:"cpus"`
	MemoryKiB int64  `json:"memoryKiB"`
}

func describeHost(ctx context.Context) (host, error) {
	h := host{GoVersion: runtime.Version(), CPUs: runtime.NumCPU()}
	commit, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return h, fmt.Errorf("asking git for the commit: %w", err)
	}
	h.Commit = strings.TrimSpace(string(commit))
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return h, err
	}
	h.Kernel = strings.TrimSpace(string(kernel))
	cpus, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return h, err
	}
	for line := range strings.Lines(string(cpus)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			h.CPU = strings.TrimSpace(value)
		}
	}
	h.MemoryKiB, err = procField("/proc/meminfo", "MemTotal")
	return h, err
}

// add records a value.
func (r *results) add(name, engine, unit string, value float64) {
	for i, s := range r.Measured {
		if s.Name == name && s.Engine == engine && s.Unit == unit {
			r.Measured[i].Values = append(s.Values, value)
			return
		}
	}
	r.Measured = append(r.Measured, series{name, engine, unit, []float64{value}})
}

// get returns a series, or none of the values if it was not measured.
func (r *results) get(name, engine, unit string) series {
	for _, s := range r.Measured {
		if s.Name == name && s.Engine == engine && s.Unit == unit {
			return s
		}
	}
	return series{Name: name, Engine: engine, Unit: unit}
}

// median returns NaN where nothing was measured.
func (s series) median() float64 { return percentile(s.Values, 50) }

// percentile returns the value below which p percent of the values are, the nearest of them; NaN of none.
func percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[int(math.Round(p/100*float64(len(sorted)-1)))]
}

// write makes results.json, and bench.txt in the format of Go's benchmarks.
func (r *results) write(dir string) error {
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	var text strings.Builder
	fmt.Fprintf(&text, "goos: %s\ngoarch: %s\ncpu: %s\ncommit: %s\n", runtime.GOOS, runtime.GOARCH, r.Host.CPU, r.Host.Commit)
	for _, s := range r.Measured {
		for _, value := range s.Values {
			fmt.Fprintf(&text, "Benchmark%s/engine=%s 1 %g %s\n", strings.ToUpper(s.Name[:1])+s.Name[1:], s.Engine, value, s.Unit)
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "results.json"), append(content, '\n'), 0o644),
		os.WriteFile(filepath.Join(dir, "bench.txt"), []byte(text.String()), 0o644))
}
