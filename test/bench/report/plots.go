// SPDX-License-Identifier: Apache-2.0

package report

import (
	"slices"

	"github.com/registry-cache/extension/test/bench/chart"
	"github.com/registry-cache/extension/test/bench/result"
)

// figure is a picture with what has to be known to read it.
type figure struct {
	// name is that of its file.
	name    string
	caption string
	svg     string
}

// section are the figures of one question.
type section struct {
	title   string
	figures []figure
}

// engineStyle is how an engine looks in all pictures.
var engineStyle = map[string]struct {
	label string
	color chart.Color
}{
	result.Direct: {"no cache", chart.Grey},
	result.Stock:  {"stock", chart.Orange},
	result.Ours:   {"this server", chart.Blue},
}

// engines are all, in the order in which they are drawn.
var engines = []string{result.Direct, result.Stock, result.Ours}

// labelled is a series under the name that it has in a picture.
type labelled struct{ label, name string }

// value is that of a picture, in which bytes are MiB.
func value(s result.Series) chart.Value {
	v := chart.Value{Median: s.Median(), Min: result.Percentile(s.Values, 0), Max: result.Percentile(s.Values, 100)}
	if s.Unit == "B" {
		v.Median, v.Min, v.Max = v.Median/(1<<20), v.Min/(1<<20), v.Max/(1<<20)
	}
	return v
}

// sections draws what was measured. What was not is left out.
func sections(r *result.Run) []section {
	all := []section{
		{"When a cache's address leads nowhere", staleFigures(r)},
		{"Nodes that start", nodeStartFigures(r)},
		{"Many nodes want the same at once", herdFigures(r)},
		{"What is stored already", warmFigures(r)},
		{"First pulls", coldFigures(r)},
		{"Memory", memoryFigures(r)},
		{"Full volumes", volumeFigures(r)},
		{"What nodes notice, and what it costs", unitFigures(r)},
	}
	return slices.DeleteFunc(all, func(s section) bool { return len(s.figures) == 0 })
}

// bars makes a picture of groups of engines, if there is anything to draw.
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

// points are the values of an engine over a parameter.
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

// lines makes a picture of those of the lines that have points.
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
