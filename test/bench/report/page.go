// SPDX-License-Identifier: Apache-2.0

// Package report renders the results of a run: a summary with all targets and measurements, a page with charts, and the
// published pages. The output depends only on results.json, and is the same for the same run.
package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"strings"

	"github.com/registry-cache/extension/test/bench/result"
)

//go:embed page.html
var pageSource string

var page = template.Must(template.New("page").Parse(pageSource))

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

// HTML returns a page with all charts and measurements. It refers to no other file and contains no script.
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
			// Package chart escapes all text.
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
