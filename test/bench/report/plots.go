// SPDX-License-Identifier: Apache-2.0

package report

import (
	"slices"

	"github.com/registry-cache/extension/test/bench/chart"
	"github.com/registry-cache/extension/test/bench/result"
)

// figure is a chart with its caption.
type figure struct {
	// name is the name of its file, without extension.
	name    string
	caption string
	svg     string
}

// section is a group of figures.
type section struct {
	title   string
	figures []figure
}

// engineStyle is the label and the colour of an engine in all charts.
var engineStyle = map[string]struct {
	label string
	color chart.Color
}{
	result.Direct: {"no cache", chart.Grey},
	result.Stock:  {"stock", chart.Orange},
	result.Ours:   {"this server", chart.Blue},
}

// engines are in the order of the bars.
var engines = []string{result.Direct, result.Stock, result.Ours}

// labelled is the name of a series and its label in a chart.
type labelled struct{ label, name string }

// value converts a series to a value of a chart. Bytes are converted to MiB.
func value(s result.Series) chart.Value {
	v := chart.Value{Median: s.Median(), Min: result.Percentile(s.Values, 0), Max: result.Percentile(s.Values, 100)}
	if s.Unit == "B" {
		v.Median, v.Min, v.Max = v.Median/(1<<20), v.Min/(1<<20), v.Max/(1<<20)
	}
	return v
}

// sections draws all charts with measured values.
func sections(r *result.Run) []section {
	all := []section{
		{"Unassigned and stale addresses", staleFigures(r)},
		{"Starting nodes", nodeStartFigures(r)},
		{"Concurrent pulls of one blob", herdFigures(r)},
		{"Stored content", warmFigures(r)},
		{"First pulls", coldFigures(r)},
		{"Memory", memoryFigures(r)},
		{"Full volumes", volumeFigures(r)},
		{"Unit and controller", unitFigures(r)},
	}
	return slices.DeleteFunc(all, func(s section) bool { return len(s.figures) == 0 })
}

// bars draws one group for each series, with one bar for each engine. It returns nothing if no series was measured.
func bars(r *result.Run, f figure, b chart.Bars, unit string, groups []labelled) []figure {
	for _, group := range groups {
		g := chart.Group{Label: group.label}
		for _, engine := range engines {
			if s := r.Get(group.name, engine, unit); len(s.Values) > 0 {
				style := engineStyle[engine]
				g.Bars = append(g.Bars, chart.Bar{Label: style.label, Color: style.color, Value: value(s)})
			}
		}
		if len(g.Bars) > 0 {
			b.Groups = append(b.Groups, g)
		}
	}
	if len(b.Groups) == 0 {
		return nil
	}
	f.svg = b.SVG()
	return []figure{f}
}

// points returns the values of an engine, sorted by parameter.
func points(r *result.Run, engine, unit string, names map[float64]string) []chart.Point {
	var all []chart.Point
	for x, name := range names {
		if s := r.Get(name, engine, unit); len(s.Values) > 0 {
			all = append(all, chart.Point{X: x, Value: value(s)})
		}
	}
	slices.SortFunc(all, func(a, b chart.Point) int {
		if a.X < b.X {
			return -1
		}
		return 1
	})
	return all
}

// lines draws the candidates that have points. It returns nothing if none has.
func lines(f figure, l chart.Lines, candidates ...chart.Line) []figure {
	for _, line := range candidates {
		if len(line.Points) > 0 {
			l.Lines = append(l.Lines, line)
		}
	}
	if len(l.Lines) == 0 {
		return nil
	}
	f.svg = l.SVG()
	return []figure{f}
}
