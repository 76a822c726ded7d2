// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
)

func unit(v float64) string { return fmt.Sprintf("%g <s>", v) }

func exact(v float64) Value { return Value{v, v, v} }

// requireWellFormed checks that svg is valid XML, refers to no other file, and contains only numbers as coordinates.
func requireWellFormed(t *testing.T, svg string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(svg))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
		start, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		if slices.Contains([]string{"script", "style", "image", "use", "foreignObject"}, start.Name.Local) {
			t.Errorf("there is an element %s", start.Name.Local)
		}
	}
	for _, bad := range []string{"NaN", "Inf", "href"} {
		if strings.Contains(svg, bad) {
			t.Errorf("there is %s in\n%s", bad, svg)
		}
	}
}

func TestBars(t *testing.T) {
	t.Parallel()
	b := Bars{Title: `Pulls & "more"`, Subtitle: "less is better", Format: unit, Reference: "direct", Groups: []Group{
		{"first", []Bar{{"direct", Grey, Value{2, 1.5, 2.5}}, {"ours", Blue, exact(0)}}},
		{"", []Bar{{"stock", Orange, exact(122)}}},
	}}
	for _, log := range []bool{false, true} {
		b.Log = log
		svg := b.SVG()
		requireWellFormed(t, svg)
		for _, want := range []string{"Pulls &amp; &#34;more&#34;", ">first<", ">direct<", "2 &lt;s&gt;", "122 &lt;s&gt;", `stroke-dasharray="4 3"`} {
			if !strings.Contains(svg, want) {
				t.Errorf("logarithmic = %t: there is no %s in\n%s", log, want, svg)
			}
		}
		if svg != b.SVG() {
			t.Error("two results for the same values")
		}
	}
}

func TestLines(t *testing.T) {
	t.Parallel()
	l := Lines{Title: "Herd", X: "clients", LogX: true, LogY: true, Format: unit, Lines: []Line{
		{"stock", Orange, false, []Point{{1, exact(1)}, {50, Value{49, 48, 50}}}},
		{"ours", Blue, true, []Point{{1, exact(1)}, {50, exact(1)}, {500, exact(1)}}},
		{"alike", Sky, false, []Point{{500, exact(1.01)}}},
		{"none", Grey, false, nil},
	}}
	svg := l.SVG()
	requireWellFormed(t, svg)
	for _, want := range []string{">stock<", ">ours<", ">500<", "<polyline", `stroke-dasharray="6 4"`} {
		if !strings.Contains(svg, want) {
			t.Errorf("there is no %s in\n%s", want, svg)
		}
	}
}

// Charts without values, and with values of 0 or less, are valid.
func TestWithoutValues(t *testing.T) {
	t.Parallel()
	requireWellFormed(t, Lines{Title: "none", Format: unit}.SVG())
	for _, v := range []float64{0, -1} {
		for _, log := range []bool{false, true} {
			requireWellFormed(t, Bars{Title: "none", Format: unit, Log: log, Groups: []Group{{"", []Bar{{"a", Blue, exact(v)}}}}}.SVG())
		}
	}
}

func TestScale(t *testing.T) {
	t.Parallel()
	linear := newScale(false, []float64{3, 7}, 100, 200)
	if linear.at(0) != 100 || linear.at(7) != 200 || linear.at(3.5) != 150 || linear.at(99) != 200 {
		t.Errorf("a linear scale puts 0, 7, 3.5, 99 at %g, %g, %g, %g", linear.at(0), linear.at(7), linear.at(3.5), linear.at(99))
	}
	if got := linear.ticks(); !slices.Equal(got, []float64{0, 2, 4, 6}) {
		t.Errorf("its ticks are %v", got)
	}
	log := newScale(true, []float64{1.5, 122}, 0, 100)
	if log.min != 1 || log.max != 200 {
		t.Errorf("a logarithmic scale goes from %g to %g, want 1 to 200", log.min, log.max)
	}
	if got := log.ticks(); !slices.Equal(got, []float64{1, 2, 5, 10, 20, 50, 100, 200}) {
		t.Errorf("its ticks are %v", got)
	}
	if got := log.at(math.Sqrt(200)); math.Abs(got-50) > 1e-9 {
		t.Errorf("the middle is at %g", got)
	}
	if got := log.at(0); got != 0 {
		t.Errorf("nothing is at %g, want the beginning", got)
	}
	if got := len(newScale(true, []float64{.001, 1000}, 0, 1).ticks()); got != 7 {
		t.Errorf("six decades have %d ticks, want 7", got)
	}
}
