package main

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPercentile(t *testing.T) {
	t.Parallel()
	values := []float64{5, 1, 4, 2, 3}
	for p, want := range map[float64]float64{0: 1, 50: 3, 99: 5, 100: 5} {
		if got := percentile(values, p); got != want {
			t.Errorf("%g %%: %g, want %g", p, got, want)
		}
	}
	if got := percentile(nil, 50); !math.IsNaN(got) {
		t.Errorf("of none: %g", got)
	}
}

// The summary says of each target whether it is met, with ratios that are made round by round.
func TestSummary(t *testing.T) {
	t.Parallel()
	var r results
	for _, v := range []float64{80, 90, 100} {
		r.add("manifest/warm", ours, "req/cpu-s", v)
		r.add("manifest/warm", stock, "req/cpu-s", v/5)
	}
	r.add("blob/warm/http", ours, "cpu-s/GiB", .6)
	r.add("blob/warm/http", stock, "cpu-s/GiB", 1)
	r.add("cold/rtt=80ms", ours, "s", 1.13)
	r.add("cold/rtt=80ms", direct, "s", 1)
	r.add("cold/rtt=20ms", ours, "s", 1.08)
	r.add("cold/rtt=20ms", direct, "s", 1)
	r.add("tag/warm", ours, "written-B/req", 0)
	r.add("evict/blobs=50000", ours, "p99-evicting-s", .004)
	r.add("evict/blobs=50000", ours, "p99-idle-s", .001)
	r.add("herd/clients=10", ours, "upstream-B/blob-B", 1.01)
	summary := r.summary()
	for _, want := range []string{
		"| warm manifest by digest, to stock | ≥ 4 | 5 (5 – 5) | yes |",
		"| warm 64 MiB blob, http, to stock | ≤ 0.5 | 0.6 (0.6 – 0.6) | NO |",
		"| cold pull, 80 ms, to direct + 1 RTT | ≤ 1.13 | 1.13 (1.13 – 1.13) | yes |",
		"| cold pull, 20 ms, to direct + 1 RTT | ≤ 1.07 | 1.08 (1.08 – 1.08) | NO |",
		"| warm tag HEAD, bytes written | ≤ 0 | 0 (0 – 0) | yes |",
		"| evicting 50 000 blobs, growth of p99 | ≤ 0.005 | 0.003 (0.003 – 0.003) | yes |",
		"| herd, clients=10 | ≥ 1, ≤ 1 | 1.01 (1.01 – 1.01) | NO |",
		"| manifest/warm | stock | req/cpu-s | 18 (16 – 20) |",
	} {
		if !strings.Contains(summary, want+"\n") {
			t.Errorf("there is no line %s", want)
		}
	}
	r.Quick = true
	if quick := r.summary(); strings.Contains(summary, "quick run") || !strings.Contains(quick, "quick run") {
		t.Errorf("it does not tell a quick run from others:\n%s", quick)
	}
	if strings.Contains(summary, "readers") {
		t.Error("it has a target that was not measured")
	}
	if t.Failed() {
		t.Log(summary)
	}
}

func TestWrite(t *testing.T) {
	t.Parallel()
	var r results
	r.add("manifest/warm", ours, "req/cpu-s", 2)
	dir := t.TempDir()
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "bench.txt"))
	if want := "BenchmarkManifest/warm/engine=ours 1 2 req/cpu-s\n"; err != nil || !strings.HasSuffix(string(text), want) {
		t.Errorf("%q, %v, want %q at its end", text, err, want)
	}
}

func TestCPUSeconds(t *testing.T) {
	t.Parallel()
	// The name has what would separate fields.
	stat := []byte("42 (a (b) c) S 1 42 42 0 -1 4194560 1 2 3 4 100 50 30 20 20 0 1 0 12 0 0\n")
	for _, tc := range []struct {
		names []string
		want  float64
	}{{[]string{"utime", "stime"}, 1.5}, {[]string{"utime", "stime", "cutime", "cstime"}, 2}} {
		if got, err := cpuSeconds(stat, tc.names...); err != nil || got != tc.want {
			t.Errorf("%v: %v, %v, want %v", tc.names, got, err, tc.want)
		}
	}
	if _, err := cpuSeconds([]byte("42 (a) S 1"), "utime"); err == nil {
		t.Error("no error for half a line")
	}
}
