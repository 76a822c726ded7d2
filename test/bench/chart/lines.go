// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"fmt"
	"math"
	"strings"
)

// Lines is a chart of values over a parameter.
type Lines struct {
	Title    string
	Subtitle string
	// X is the name of the parameter.
	X string
	// LogX and LogY make an axis logarithmic.
	LogX, LogY bool
	Lines      []Line
	// Format formats a value with its unit.
	Format func(float64) string
	// FormatX formats a parameter. Default: the number.
	FormatX func(float64) string
}

// Line is one line of the chart.
type Line struct {
	Name  string
	Color Color
	// Dashed distinguishes a second line of one colour from the first.
	Dashed bool
	Points []Point // sorted by X
}

// Point is a value at a parameter.
type Point struct {
	X     float64
	Value Value
}

const plotHeight = 270.0

// SVG returns the chart.
func (l Lines) SVG() string {
	var p picture
	if l.FormatX == nil {
		l.FormatX = func(v float64) string { return fmt.Sprintf("%g", v) }
	}
	top := p.heading(l.Title, l.Subtitle) + 10
	bottom := top + plotHeight
	var xs, values []float64
	var names float64
	for _, line := range l.Lines {
		names = math.Max(names, textWidth(line.Name))
		for _, point := range line.Points {
			xs, values = append(xs, point.X), append(values, point.Value.Min, point.Value.Median, point.Value.Max)
		}
	}
	sy := newScale(l.LogY, values, bottom, top)
	left := margin
	for _, tick := range sy.ticks() {
		left = math.Max(left, margin+textWidth(l.Format(tick)))
	}
	left += 14
	right := width - margin - names - 20
	sx := newScale(l.LogX, xs, left+10, right)
	for _, tick := range sy.ticks() {
		y := sy.at(tick)
		p.line(left, y, right+10, y, grid, "")
		p.text(left-8, y+4.5, "end", l.Format(tick), fmt.Sprintf(`fill="%s" font-size="12"`, faint))
	}
	drawn := map[float64]bool{}
	for _, x := range xs {
		if !drawn[x] {
			drawn[x] = true
			p.line(sx.at(x), bottom, sx.at(x), bottom+5, faint, "")
			p.text(sx.at(x), bottom+19, "middle", l.FormatX(x), fmt.Sprintf(`fill="%s" font-size="12"`, faint))
		}
	}
	p.line(left, bottom, right+10, bottom, faint, "")
	p.text((left+right)/2, bottom+38, "middle", l.X, fmt.Sprintf(`fill="%s"`, faint))
	for i, line := range l.Lines {
		line.draw(&p, sx, sy, i)
	}
	l.name(&p, sx, sy, top)
	return p.finish(l.Title, bottom+52)
}

func (line Line) draw(p *picture, sx, sy scale, shape int) {
	var path []string
	for _, point := range line.Points {
		path = append(path, n(sx.at(point.X))+","+n(sy.at(point.Value.Median)))
	}
	dash := ""
	if line.Dashed {
		dash = ` stroke-dasharray="6 4"`
	}
	fmt.Fprintf(p, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2.2" stroke-linejoin="round"%s/>`+"\n", strings.Join(path, " "), line.Color, dash)
	for _, point := range line.Points {
		x, y := sx.at(point.X), sy.at(point.Value.Median)
		if point.Value.spreads() {
			p.whisker(x, sy.at(point.Value.Min), x, sy.at(point.Value.Max))
		}
		marker(p, shape, x, y, line.Color)
	}
}

// marker draws a shape that distinguishes lines without colours.
func marker(p *picture, shape int, x, y float64, color Color) {
	const r = 4.2
	attributes := fmt.Sprintf(`fill="%s" stroke="%s" stroke-width="1.2"`, color, paper)
	switch shape % 4 {
	case 0:
		fmt.Fprintf(p, `<circle cx="%s" cy="%s" r="%s" %s/>`+"\n", n(x), n(y), n(r+.4), attributes)
	case 1:
		fmt.Fprintf(p, `<rect x="%s" y="%s" width="%s" height="%s" %s/>`+"\n", n(x-r), n(y-r), n(2*r), n(2*r), attributes)
	case 2:
		fmt.Fprintf(p, `<path d="M%s %sl5.4 9.4h-10.8z" %s/>`+"\n", n(x), n(y-6), attributes)
	default:
		fmt.Fprintf(p, `<path d="M%s %sl5.6 5.6l-5.6 5.6l-5.6 -5.6z" %s/>`+"\n", n(x), n(y-5.6), attributes)
	}
}

// name draws the names of the lines beside their ends, moved apart if they would overlap. A thin line connects each end with
// its name.
func (l Lines) name(p *picture, sx, sy scale, top float64) {
	const pitch = 17.0
	type label struct {
		line Line
		x, y float64 // the end of the line
		at   float64
	}
	var labels []label
	for _, line := range l.Lines {
		if len(line.Points) > 0 {
			last := line.Points[len(line.Points)-1]
			labels = append(labels, label{line, sx.at(last.X), sy.at(last.Value.Median), sy.at(last.Value.Median)})
		}
	}
	// Sort by height, move each name below the previous one, then move names that left the plot up again.
	for i := range labels {
		for j := i; j > 0 && labels[j].y < labels[j-1].y; j-- {
			labels[j], labels[j-1] = labels[j-1], labels[j]
		}
	}
	for i := range labels {
		labels[i].at = math.Max(labels[i].at, top+6)
		if i > 0 {
			labels[i].at = math.Max(labels[i].at, labels[i-1].at+pitch)
		}
	}
	limit := top + plotHeight
	for i := len(labels) - 1; i >= 0; i-- {
		labels[i].at = math.Min(labels[i].at, limit)
		limit = labels[i].at - pitch
	}
	for _, label := range labels {
		x := sx.to + 16
		p.line(label.x+7, label.y, x-3, label.at, string(label.line.Color), `stroke-width="0.8" stroke-dasharray="1 3"`)
		p.text(x, label.at+4.5, "start", label.line.Name, fmt.Sprintf(`fill="%s" font-weight="600"`, label.line.Color))
	}
}
