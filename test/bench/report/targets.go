// SPDX-License-Identifier: Apache-2.0

package report

import (
	"cmp"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/registry-cache/extension/test/bench/result"
)

// target is a bound for a measurement: for its value, or for its ratio to the value of another engine.
type target struct {
	what string
	// name, engine and unit select the series.
	name, unit string
	// engine is the measured engine; empty means result.Ours.
	engine string
	// to is the engine by whose values the values are divided, for each round; empty means no division.
	to string
	// minus is a unit of the same series whose values are subtracted first; empty means none.
	minus string
	// least and most are the bounds of the median; 0 means no bound.
	least, most float64
	// slack is added to the upper bound of the ratio, after division by the median of engine to. It has the unit of the
	// series.
	slack float64
}

var targets = slices.Concat(herdTargets(), staleTargets(), []target{
	{what: "start of 3 nodes, empty caches, relative to direct", name: "nodestart/nodes=3/cold", unit: "s", to: result.Direct, most: 1},
	{what: "start of 3 nodes, caches with all images, relative to direct", name: "nodestart/nodes=3/warm", unit: "s", to: result.Direct, most: 1},
	{what: "unit with 3 caches: share of one processor", name: "unit/cost/caches=3", unit: "cpu-s/s", most: .005},
	{what: "unit: hanging cache withdrawn, 99th percentile, s", name: "unit/withdraw/hanging", unit: "p99-s", most: 3},
	{what: "unit: unreachable cache withdrawn, 99th percentile, s", name: "unit/withdraw/dropped", unit: "p99-s", most: 3},
	{what: "unit: cache used after a hang, 99th percentile, s", name: "unit/back/hanging", unit: "p99-s", most: 5},
	{what: "unit: cache used after it is reachable again, 99th percentile, s", name: "unit/back/dropped", unit: "p99-s", most: 5},
	{what: "memory, 1000 slow readers, http", name: "readers/1000/http", unit: "B", most: 100 << 20},
	{what: "memory, 1000 slow readers, https", name: "readers/1000/https", unit: "B", most: 100 << 20},
	{what: "memory, 1000 slow readers, uncached blob", name: "readers/1000/http/cold", unit: "B", most: 100 << 20},
	{what: "stored manifest by digest, relative to stock", name: "manifest/warm", unit: "req/cpu-s", to: result.Stock, least: 4},
	{what: "stored 64 MiB blob, http, relative to stock", name: "blob/warm/http", unit: "cpu-s/GiB", to: result.Stock, most: .5},
	{what: "stored 64 MiB blob, https, relative to stock", name: "blob/warm/https", unit: "cpu-s/GiB", to: result.Stock, most: 1},
	{what: "stored 64 MiB blob, https, CPU s/GiB", name: "blob/warm/https", unit: "cpu-s/GiB", most: .75},
	{what: "first pull, round trip 0 ms, relative to direct", name: "cold/rtt=0ms", unit: "s", to: result.Direct, most: 1.05},
	{what: "first pull, round trip 20 ms, relative to direct + 1 round trip", name: "cold/rtt=20ms", unit: "s", to: result.Direct, most: 1.05, slack: .02},
	{what: "first pull, round trip 80 ms, relative to direct + 1 round trip", name: "cold/rtt=80ms", unit: "s", to: result.Direct, most: 1.05, slack: .08},
	{what: "first pull, 20 ms and 1 Gbit/s, relative to direct + 1 round trip", name: "cold/rtt=20ms/line=1Gbit", unit: "s", to: result.Direct, most: 1.05, slack: .02},
	{what: "first pull, 80 ms and 1 Gbit/s, relative to direct + 1 round trip", name: "cold/rtt=80ms/line=1Gbit", unit: "s", to: result.Direct, most: 1.05, slack: .08},
	{what: "first pull of 200 MiB in 10 layers, relative to nginx", name: "proxy/layers=10", unit: "s", to: result.Nginx, most: 1},
	{what: "first pull of 200 MiB in 10 layers, CPU time relative to nginx", name: "proxy/layers=10", unit: "cpu-s", to: result.Nginx, most: 1.2},
	{what: "HEAD of an unchanged tag, bytes written", name: "tag/warm", unit: "written-B/req", most: math.SmallestNonzeroFloat64},
	{what: "HEAD of an unchanged tag, upstream requests", name: "tag/warm", unit: "upstream-req/req", most: 1. / 500},
	{what: "start with 100 000 blobs, first cache hit, s", name: "start/blobs=100000", unit: "first-200-s", most: 1},
	{what: "start with 100 000 blobs, eviction index complete, s", name: "start/blobs=100000", unit: "indexed-s", most: 10},
	{what: "SIGKILL during concurrent pulls, bytes sent by the upstream per blob size", name: "kill/blobs=100000", unit: "sent-B/blob-B", least: 1, most: 2},
	{what: "images 3 × as large as the volume, hit rate, relative to stock", name: "disk/images=192", unit: "hit-B/B", to: result.Stock, least: 1},
	{what: "images 3 × as large as the volume, failed pulls", name: "disk/images=192", unit: "failed/req", most: math.SmallestNonzeroFloat64},
	{what: "eviction of 100 000 blobs, manifest from the upstream, s", name: "evict/blobs=100000", unit: "cold-evicting-s", most: .5},
	{what: "eviction of 100 000 blobs, increase of the 99th percentile, s", name: "evict/blobs=100000", unit: "p99-evicting-s", minus: "p99-idle-s", most: .005},
})

func herdTargets() []target {
	var all []target
	for _, name := range []string{"clients=1", "clients=10", "clients=50", "clients=100", "clients=500", "clients=10/first-leaves", "clients=10/leader-leaves", "clients=10/staggered"} {
		all = append(all, target{what: "concurrent pulls of one blob, " + name + ", bytes sent by the upstream per blob size", name: "herd/" + name, unit: "upstream-B/blob-B", least: 1, most: 1})
	}
	return all
}

func staleTargets() []target {
	var all []target
	for _, by := range []string{"containerd-2", "containerd-1.7"} {
		for _, shape := range []string{"alpine", "ops-toolbelt"} {
			held := func(state string, most, slack float64) {
				what := fmt.Sprintf("%s pulls %s, %s, relative to direct", by, shape, state)
				if slack > 0 {
					what += fmt.Sprintf(" + %g s", slack)
				}
				all = append(all, target{what: what, name: "stale/" + by + "/" + shape, unit: "s", engine: state, to: result.Direct, most: most, slack: slack})
			}
			held(result.StaleUnitFirst, 1, 2)
			held(result.StaleUnitLater, 1.1, 0)
			held(result.DeletedPinned, 1, 2)
		}
	}
	return all
}

// WriteSummary writes summary.md into the folder of the run.
func WriteSummary(r *result.Run, dir string) error {
	return result.WriteFile(filepath.Join(dir, "summary.md"), []byte(Summary(r)))
}

// Summary returns the content of summary.md: a table of the targets and a table of all measurements.
func Summary(r *result.Run) string {
	var s strings.Builder
	fmt.Fprintf(&s, "# Summary of a benchmark run\n\n%s, %d processors, %.1f GiB, Linux %s, %s, commit %s, rounds: %d\n\n",
		r.Host.CPU, r.Host.CPUs, float64(r.Host.MemoryKiB)/(1<<20), r.Host.Kernel, r.Host.GoVersion, r.Host.Commit, r.Rounds)
	if err := r.Failed(); err != nil {
		fmt.Fprintf(&s, "Some scenarios failed or did not start:\n\n```\n%s\n```\n\n", err)
	}
	if r.Quick {
		s.WriteString("This is a quick run with reduced loads. Its values must not be compared.\n\n")
	}
	s.WriteString("## Targets\n\n| target | bound | median (minimum – maximum) | met |\n| --- | --- | --- | --- |\n")
	for _, t := range targets {
		h := hold(r, t)
		if len(h.values) == 0 {
			continue
		}
		met := "yes"
		if !h.met {
			met = "**no**"
		}
		fmt.Fprintf(&s, "| %s | %s | %s | %s |\n", t.what, wanted(t, h.limit), spread(h.values), met)
	}
	s.WriteString("\n## Measurements\n\n| measurement | engine | unit | median (minimum – maximum) |\n| --- | --- | --- | --- |\n")
	for _, m := range r.Measured {
		fmt.Fprintf(&s, "| %s | %s | %s | %s |\n", m.Name, m.Engine, m.Unit, spread(m.Values))
	}
	return s.String()
}

// held is the result of a target.
type held struct {
	values []float64 // one for each round
	limit  float64   // upper bound of the median
	met    bool
}

// hold compares a run with a target. It returns no values if the target was not measured.
func hold(r *result.Run, t target) (h held) {
	engine := cmp.Or(t.engine, result.Ours)
	h.values = slices.Clone(r.Get(t.name, engine, t.unit).Values)
	h.limit = t.most
	if t.minus != "" {
		for i, v := range r.Get(t.name, engine, t.minus).Values {
			h.values[i] -= v
		}
	}
	if t.to != "" {
		other := r.Get(t.name, t.to, t.unit)
		if len(other.Values) == 0 {
			return held{}
		}
		// A failed scenario may have fewer values for one engine.
		h.values = h.values[:min(len(h.values), len(other.Values))]
		for i := range h.values {
			h.values[i] /= other.Values[i]
		}
		if t.slack > 0 {
			h.limit += t.slack / other.Median()
		}
	}
	m := result.Percentile(h.values, 50)
	h.met = m >= t.least && (h.limit == 0 || m <= h.limit)
	return h
}

func wanted(t target, limit float64) string {
	var parts []string
	if t.least > 0 {
		parts = append(parts, "≥ "+number(t.least))
	}
	if limit > 0 {
		parts = append(parts, "≤ "+number(limit))
	}
	return strings.Join(parts, ", ")
}

func spread(values []float64) string {
	return fmt.Sprintf("%s (%s – %s)", number(result.Percentile(values, 50)), number(result.Percentile(values, 0)), number(result.Percentile(values, 100)))
}
