// SPDX-License-Identifier: Apache-2.0

// Package chart draws bar charts and line charts as SVG without scripts, fonts and style sheets. The charts are readable
// without colours. The output is the same for the same values.
package chart

import (
	"fmt"
	"html"
	"math"
	"strings"
)

const (
	width      = 860.0
	margin     = 16.0
	fontSize   = 13.0
	fontFamily = "system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',Arial,sans-serif"

	ink   = "#1f2933" // text
	faint = "#5b6770" // axes and second text
	grid  = "#e3e7ea"
	paper = "#ffffff"

	// halo is an outline of text that covers lines behind it.
	halo = `stroke="` + paper + `" stroke-width="4" paint-order="stroke"`
)

// Color is a colour of the palette of Okabe and Ito, which is distinguishable with all kinds of colour vision.
type Color string

// The colours.
const (
	Blue   Color = "#0072b2"
	Orange Color = "#d55e00"
	Grey   Color = "#7a858e"
	Green  Color = "#00795c"
	Sky    Color = "#56b4e9"
	Amber  Color = "#c78500"
)

// Value contains median, minimum and maximum of the rounds.
type Value struct{ Median, Min, Max float64 }

// spreads reports whether the spread is visible in a chart.
func (v Value) spreads() bool { return v.Max-v.Min > .005*math.Abs(v.Median) }

// picture contains the elements of an incomplete SVG.
type picture struct{ strings.Builder }

func (p *picture) finish(title string, height float64) string {
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %s %s" width="%s" height="%s" role="img" aria-label="%s" font-family="%s" font-size="%s" fill="%s">`+
		"\n<title>%s</title>\n"+`<rect width="100%%" height="100%%" fill="%s"/>`+"\n%s</svg>\n",
		n(width), n(height), n(width), n(height), html.EscapeString(title), html.EscapeString(fontFamily), n(fontSize), ink, html.EscapeString(title), paper, p.String())
}

// heading draws title and subtitle, and returns their height.
func (p *picture) heading(title, subtitle string) float64 {
	p.text(margin, margin+10, "start", title, `font-size="16" font-weight="600"`)
	if subtitle == "" {
		return margin + 22
	}
	p.text(margin, margin+30, "start", subtitle, fmt.Sprintf(`fill="%s"`, faint))
	return margin + 44
}

func (p *picture) text(x, y float64, anchor, text, attributes string) {
	fmt.Fprintf(p, `<text x="%s" y="%s" text-anchor="%s" %s>%s</text>`+"\n", n(x), n(y), anchor, attributes, html.EscapeString(text))
}

func (p *picture) line(x1, y1, x2, y2 float64, color string, attributes string) {
	fmt.Fprintf(p, `<line x1="%s" y1="%s" x2="%s" y2="%s" stroke="%s" %s/>`+"\n", n(x1), n(y1), n(x2), n(y2), color, attributes)
}

// whisker draws the spread of a value, horizontally or vertically.
func (p *picture) whisker(x1, y1, x2, y2 float64) {
	const cap = 4
	p.line(x1, y1, x2, y2, ink, `stroke-width="1.2"`)
	dx, dy := 0., float64(cap)
	if x1 == x2 {
		dx, dy = cap, 0
	}
	p.line(x1-dx, y1-dy, x1+dx, y1+dy, ink, `stroke-width="1.2"`)
	p.line(x2-dx, y2-dy, x2+dx, y2+dy, ink, `stroke-width="1.2"`)
}

// n formats a coordinate with one decimal.
func n(v float64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.1f", v), "0"), ".")
}

// textWidth returns the approximate width of a text in the default size.
func textWidth(text string) float64 { return float64(len([]rune(text))) * fontSize * .56 }
