// SPDX-License-Identifier: Apache-2.0

// Package report shows what a run measured: as a table that holds it against the targets, as a page with pictures, and as
// the part of the README that is about it. All are made from results.json alone, and are the same bytes for the same run.
package report

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"path/filepath"
	"strings"

	"github.com/registry-cache/extension/test/bench/result"
)

//go:embed page.html
var pageSource string

var page = template.Must(template.New("page").Parse(pageSource))

// Write makes summary.md and report.html in the folder of the run.
func Write(r *result.Run, dir string) error {
	html, err := HTML(r)
	if err != nil {
		return err
	}
	return errors.Join(
		result.WriteFile(filepath.Join(dir, "summary.md"), []byte(Summary(r))),
		result.WriteFile(filepath.Join(dir, "report.html"), html))
}

type pageTarget struct {
	What, Wanted, Measured string
	Met                    bool
}

type pageSection struct {
	ID, Title string
	Figures   []pageFigure
}

type pageFigure struct {
	SVG     template.HTML
	Caption string
}

type pageSeries struct {
	Name, Engine, Unit, Median, Min, Max string
	Rounds                               int
}

// HTML is one file that needs no other, no script and no network.
func HTML(r *result.Run) ([]byte, error) {
	data := struct {
		Run       *result.Run
		GiB       string
		Minutes   string
		Failed    []string
		Sections  []pageSection
		Targets   []pageTarget
		Missed    []string
		Losses    []loss
		Measured  []pageSeries
		Scenarios []pageScenario
	}{
		Run: r, GiB: fmt.Sprintf("%.1f", float64(r.Host.MemoryKiB)/(1<<20)),
		Missed: missed(r), Losses: losses(r),
	}
	if err := r.Failed(); err != nil {
		data.Failed = strings.Split(err.Error(), "\n")
	}
	var all float64
	for _, s := range r.Scenarios {
		all += s.Seconds
		data.Scenarios = append(data.Scenarios, pageScenario{s, seconds(float64(int(s.Seconds + .5)))})
	}
	data.Minutes = fmt.Sprintf("%.0f", all/60)
	for i, s := range sections(r) {
		of := pageSection{ID: fmt.Sprintf("s%d", i+1), Title: s.title}
		for _, f := range s.figures {
			// Made by package chart, which escapes what it writes.
			of.Figures = append(of.Figures, pageFigure{template.HTML(f.svg), f.caption})
		}
		data.Sections = append(data.Sections, of)
	}
	for _, t := range targets {
		if h := hold(r, t); len(h.values) > 0 {
			data.Targets = append(data.Targets, pageTarget{t.what, wanted(t, h.limit), spread(h.values), h.met})
		}
	}
	for _, s := range r.Measured {
		data.Measured = append(data.Measured, pageSeries{s.Name, s.Engine, s.Unit, number(s.Median()),
			number(result.Percentile(s.Values, 0)), number(result.Percentile(s.Values, 100)), len(s.Values)})
	}
	var out bytes.Buffer
	if err := page.Execute(&out, data); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

type pageScenario struct {
	result.Scenario
	Took string
}
