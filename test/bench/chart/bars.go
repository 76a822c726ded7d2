// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"fmt"
	"math"
)

// Bars is a chart of horizontal bars in groups.
type Bars struct {
	Title string
	// Subtitle contains quantity, unit and which values are better.
	Subtitle string
	// Log makes the axis logarithmic.
	Log    bool
	Groups []Group
	// Format formats a value with its unit.
	Format func(float64) string
	// FormatTick formats a value of the axis. Default: Format.
	FormatTick func(float64) string
	// Reference is the label of a bar. A line through all bars of its group marks its value; empty means no line.
	Reference string
}

// Group is a group of bars that are compared.
type Group struct {
	// Label is above the bars; empty means no label.
	Label string
	Bars  []Bar
}

// Bar is one value.
type Bar struct {
	Label string
	Color Color
	Value Value
}

const (
	barHeight = 18.0
	barPitch  = 25.0
)

// SVG returns the chart.
func (b Bars) SVG() string {
	var p picture
	if b.FormatTick == nil {
		b.FormatTick = b.Format
	}
	top := p.heading(b.Title, b.Subtitle) + 6
	left, right := b.room()
	var values []float64
	height := 0.
	for _, g := range b.Groups {
		if g.Label != "" {
			height += barPitch
		}
		height += float64(len(g.Bars))*barPitch + 8
		for _, bar := range g.Bars {
			values = append(values, bar.Value.Min, bar.Value.Median, bar.Value.Max)
		}
	}
	s := newScale(b.Log, values, left, width-right)
	bottom := top + height
	last := math.Inf(-1)
	for _, tick := range s.ticks() {
		x := s.at(tick)
		p.line(x, top, x, bottom, grid, "")
		// Omit labels that would overlap.
		label := b.FormatTick(tick)
		if x-textWidth(label)/2 > last {
			p.text(x, bottom+18, "middle", label, fmt.Sprintf(`fill="%s" font-size="12"`, faint))
			last = x + textWidth(label)/2 + 6
		}
	}
	y := top
	for _, g := range b.Groups {
		if g.Label != "" {
			p.text(margin, y+16, "start", g.Label, `font-weight="600" `+halo)
			y += barPitch
		}
		begin := y
		for _, bar := range g.Bars {
			b.bar(&p, s, bar, left, y)
			y += barPitch
		}
		for _, bar := range g.Bars {
			if b.Reference != "" && bar.Label == b.Reference {
				x := s.at(bar.Value.Median)
				p.line(x, begin-2, x, y-3, ink, `stroke-dasharray="4 3" stroke-width="1.2"`)
			}
		}
		p.line(left, begin-3, left, y-4, faint, "")
		y += 8
	}
	return p.finish(b.Title, bottom+30)
}

func (b Bars) bar(p *picture, s scale, bar Bar, left, y float64) {
	middle := y + barHeight/2
	p.text(left-8, middle+4.5, "end", bar.Label, "")
	end := math.Max(s.at(bar.Value.Median), left+1.5)
	fmt.Fprintf(p, `<rect x="%s" y="%s" width="%s" height="%s" rx="1.5" fill="%s"/>`+"\n", n(left), n(y), n(end-left), n(barHeight), bar.Color)
	if bar.Value.spreads() {
		p.whisker(s.at(bar.Value.Min), middle, s.at(bar.Value.Max), middle)
		end = math.Max(end, s.at(bar.Value.Max))
	}
	p.text(end+9, middle+4.5, "start", b.Format(bar.Value.Median), `font-weight="600" `+halo)
}

// room returns the width of the labels on the left and of the values on the right.
func (b Bars) room() (left, right float64) {
	for _, g := range b.Groups {
		for _, bar := range g.Bars {
			left = math.Max(left, textWidth(bar.Label))
			right = math.Max(right, textWidth(b.Format(bar.Value.Median)))
		}
	}
	return margin + left + 8, right + 9 + margin
}
