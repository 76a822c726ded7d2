package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
)

// target is what a measurement must show. A target without a comparison holds the engine against a fixed value; one with a
// comparison holds the ratio of both.
type target struct {
	what string
	// name, engine and unit select the series.
	name, unit string
	// engine is what is held; empty means ours.
	engine string
	// to is the engine that it is divided by, round by round; empty means none.
	to string
	// minus is a unit of the same name that is subtracted from unit first; empty means none.
	minus string
	// least and most bound the median; 0 means no bound.
	least, most float64
	// slack is added to what the ratio may reach, as a share of the other engine's value, in the unit of the series.
	slack float64
}

var targets = slices.Concat(herdTargets(), staleTargets(), []target{
	{what: "unit: cost with 3 caches, of a processor", name: "unit/cost/caches=3", unit: "cpu-s/s", most: .005},
	{what: "unit: hanging cache withdrawn, p99 of 50", name: "unit/withdraw/hanging", unit: "p99-s", most: 3},
	{what: "unit: unreachable cache withdrawn, p99 of 50", name: "unit/withdraw/dropped", unit: "p99-s", most: 3},
	{what: "unit: cache that answers again used, p99 of 50", name: "unit/back/hanging", unit: "p99-s", most: 5},
	{what: "unit: cache that can be reached again used, p99 of 50", name: "unit/back/dropped", unit: "p99-s", most: 5},
	{what: "memory, 1000 slow readers, http", name: "readers/1000/http", unit: "B", most: 100 << 20},
	{what: "memory, 1000 slow readers, https", name: "readers/1000/https", unit: "B", most: 150 << 20},
	{what: "warm manifest by digest, to stock", name: "manifest/warm", unit: "req/cpu-s", to: stock, least: 4},
	{what: "warm 64 MiB blob, http, to stock", name: "blob/warm/http", unit: "cpu-s/GiB", to: stock, most: .5},
	{what: "warm 64 MiB blob, https, to stock", name: "blob/warm/https", unit: "cpu-s/GiB", to: stock, most: 1},
	{what: "cold pull, 0 ms, to direct", name: "cold/rtt=0ms", unit: "s", to: direct, most: 1.05},
	{what: "cold pull, 20 ms, to direct + 1 RTT", name: "cold/rtt=20ms", unit: "s", to: direct, most: 1.05, slack: .02},
	{what: "cold pull, 80 ms, to direct + 1 RTT", name: "cold/rtt=80ms", unit: "s", to: direct, most: 1.05, slack: .08},
	{what: "the same, 20 ms and 1 Gbit/s", name: "cold/rtt=20ms/line=1Gbit", unit: "s", to: direct, most: 1.05, slack: .02},
	{what: "the same, 80 ms and 1 Gbit/s", name: "cold/rtt=80ms/line=1Gbit", unit: "s", to: direct, most: 1.05, slack: .08},
	{what: "warm tag HEAD, bytes written", name: "tag/warm", unit: "written-B/req", most: math.SmallestNonzeroFloat64},
	{what: "warm tag HEAD, upstream requests", name: "tag/warm", unit: "upstream-req/req", most: 1. / 500},
	{what: "start on 100 000 blobs, first answer", name: "start/blobs=100000", unit: "first-200-s", most: 1},
	{what: "start on 100 000 blobs, index complete", name: "start/blobs=100000", unit: "indexed-s", most: 10},
	{what: "evicting 50 000 blobs, growth of p99", name: "evict/blobs=50000", unit: "p99-evicting-s", minus: "p99-idle-s", most: .005},
})

func herdTargets() []target {
	var all []target
	for _, name := range []string{"clients=1", "clients=10", "clients=50", "clients=100", "clients=500", "clients=10/first-leaves"} {
		all = append(all, target{what: "herd, " + name, name: "herd/" + name, unit: "upstream-B/blob-B", least: 1, most: 1})
	}
	return all
}

func staleTargets() []target {
	var all []target
	for _, by := range []string{"pull", "pull-containerd-1.7"} {
		for _, shape := range shapes {
			held := func(state string, most, slack float64) {
				what := fmt.Sprintf("%s of %s, %s, to direct", by, shape.name, state)
				if slack > 0 {
					what += fmt.Sprintf(" + %g s", slack)
				}
				all = append(all, target{what: what, name: by + "/" + shape.name, unit: "s", engine: state, to: direct, most: most, slack: slack})
			}
			held(staleUnitFirst, 1, 2)
			held(staleUnitLater, 1.1, 0)
			held(deletedPinned, 1, 2)
		}
	}
	return all
}

// summary returns a table of the targets, and one of everything.
func (r *results) summary() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s, %d processors, %.1f GiB, Linux %s, %s, commit %s, rounds: %d\n\n",
		r.Host.CPU, r.Host.CPUs, float64(r.Host.MemoryKiB)/(1<<20), r.Host.Kernel, r.Host.GoVersion, r.Host.Commit, r.Rounds)
	if r.Quick {
		s.WriteString("This was a quick run: it shows that everything runs, and proves no figure.\n\n")
	}
	s.WriteString("| target | wanted | measured: median (min – max) | met |\n| --- | --- | --- | --- |\n")
	for _, t := range targets {
		values, limit := r.hold(t)
		if len(values) == 0 {
			continue
		}
		m := percentile(values, 50)
		met := "yes"
		if m < t.least || limit > 0 && m > limit {
			met = "NO"
		}
		fmt.Fprintf(&s, "| %s | %s | %s | %s |\n", t.what, wanted(t, limit), spread(values), met)
	}
	s.WriteString("\n| measurement | engine | unit | median (min – max) |\n| --- | --- | --- | --- |\n")
	for _, m := range r.Measured {
		fmt.Fprintf(&s, "| %s | %s | %s | %s |\n", m.Name, m.Engine, m.Unit, spread(m.Values))
	}
	return s.String()
}

// hold returns what a target is about, round by round, and the most that its median may be.
func (r *results) hold(t target) (values []float64, limit float64) {
	engine := cmp.Or(t.engine, ours)
	values = slices.Clone(r.get(t.name, engine, t.unit).Values)
	if t.minus != "" {
		for i, v := range r.get(t.name, engine, t.minus).Values {
			values[i] -= v
		}
	}
	limit = t.most
	if t.to == "" {
		return values, limit
	}
	other := r.get(t.name, t.to, t.unit)
	if len(other.Values) < len(values) {
		return nil, 0
	}
	for i := range values {
		values[i] /= other.Values[i]
	}
	if t.slack > 0 {
		limit += t.slack / other.median()
	}
	return values, limit
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
	return fmt.Sprintf("%s (%s – %s)", number(percentile(values, 50)), number(percentile(values, 0)), number(percentile(values, 100)))
}

// number is for people: three digits that count.
func number(v float64) string {
	switch {
	case v != 0 && math.Abs(v) < 1e-300:
		return "0"
	case math.Abs(v) >= 1<<20:
		return fmt.Sprintf("%.3g Mi", v/(1<<20))
	case math.Abs(v) >= 1000:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}
