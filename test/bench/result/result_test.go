// SPDX-License-Identifier: Apache-2.0

package result

import (
	"math"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

func TestPercentile(t *testing.T) {
	t.Parallel()
	values := []float64{5, 1, 4, 2, 3}
	for p, want := range map[float64]float64{0: 1, 50: 3, 99: 5, 100: 5} {
		if got := Percentile(values, p); got != want {
			t.Errorf("%g %%: %g, want %g", p, got, want)
		}
	}
	if got := Percentile(nil, 50); !math.IsNaN(got) {
		t.Errorf("of none: %g", got)
	}
}

func TestWriteAndRead(t *testing.T) {
	t.Parallel()
	want := &Run{Rounds: 2, Scenarios: []Scenario{{Name: "manifest", Seconds: 1, Done: true}, {Name: "blob"}}}
	want.Add("manifest/warm", Ours, "req/cpu-s", 2)
	dir := t.TempDir()
	if err := want.Write(dir); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(dir); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, %v, want %+v", got, err, want)
	}
	if _, err := Read(t.TempDir()); err == nil {
		t.Error("no error for a folder without a run")
	}
}

func TestBenchmarks(t *testing.T) {
	t.Parallel()
	r := &Run{Host: Host{CPU: "A processor", Commit: "0123456789ab"}}
	for _, v := range []float64{2, .5} {
		r.Add("manifest/warm", Ours, "req/cpu-s", v)
	}
	want := "goos: linux\ngoarch: amd64\ncpu: A processor\ncommit: 0123456789ab\n" +
		"BenchmarkManifest/warm/engine=ours 1 2 req/cpu-s\nBenchmarkManifest/warm/engine=ours 1 0.5 req/cpu-s\n"
	got := string(r.Benchmarks())
	if got = strings.Replace(got, "goarch: "+runtime.GOARCH, "goarch: amd64", 1); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestSelected(t *testing.T) {
	t.Parallel()
	old := &Run{}
	old.Add("cold/rtt=0ms", Ours, "s", 1)
	chosen := &Run{Scenarios: []Scenario{{Name: "cold"}}}
	for _, r := range []*Run{old, chosen} {
		if !r.Selected("cold/rtt=80ms") || r.Selected("colder/rtt=0ms") {
			t.Errorf("cold is selected: %t, colder: %t", r.Selected("cold/rtt=80ms"), r.Selected("colder/rtt=0ms"))
		}
	}
}

func TestFailed(t *testing.T) {
	t.Parallel()
	r := &Run{Scenarios: []Scenario{{Name: "herd", Done: true}}}
	if err := r.Failed(); err != nil {
		t.Error(err)
	}
	r.Scenarios = append(r.Scenarios, Scenario{Name: "cold", Done: true, Error: "no disk"}, Scenario{Name: "stale"})
	if err := r.Failed(); err == nil || !strings.Contains(err.Error(), "cold failed: no disk") || !strings.Contains(err.Error(), "stale did not start") {
		t.Errorf("%v, want an error that names both scenarios", err)
	}
}
