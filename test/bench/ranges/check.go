// SPDX-License-Identifier: Apache-2.0

package ranges

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/registry-cache/extension/test/bench/result"
)

// Check compares a run with the ranges, and writes a table of all ratios outside of their ranges to out. It returns an error
// if there is such a ratio, or if the run has no ratio of the ranges.
//
// A missing ratio counts as outside if the run selected its scenario. For a quick run, Check only requires that each
// scenario ended and has values.
func (r *Ranges) Check(run *result.Run, out io.Writer) error {
	if err := run.Failed(); err != nil {
		return err
	}
	if run.Quick {
		return checkQuick(run, out)
	}
	measured := map[string]Ratio{}
	for _, ratio := range measure(run) {
		measured[ratio.Name] = ratio
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "RATIO\tVALUE\tRANGE\tWHY")
	var in, outside, skipped int
	for _, want := range r.Ratios {
		got, ok := measured[want.Name]
		least, most := want.Range()
		within := fmt.Sprintf("%.3g – %.3g", least, most)
		switch {
		case !ok && !run.Selected(want.Name):
			skipped++
		case !ok:
			outside++
			fmt.Fprintf(table, "%s\t\t%s\tmissing: the scenario ran and did not measure it\n", want.Name, within)
		case got.Measured < least:
			outside++
			fmt.Fprintf(table, "%s\t%.3g\t%s\tbelow\n", want.Name, got.Measured, within)
		case got.Measured > most:
			outside++
			fmt.Fprintf(table, "%s\t%.3g\t%s\tabove\n", want.Name, got.Measured, within)
		default:
			in++
		}
	}
	if outside > 0 {
		if err := table.Flush(); err != nil {
			return err
		}
		return fmt.Errorf("%d of %d ratios are outside of their ranges, which are those of run %s: find out why, or store this run as the one to compare with (make bench-store)", outside, in+outside, r.Run)
	}
	if in == 0 {
		return fmt.Errorf("the run has none of the scenarios that run %s has ratios of", r.Run)
	}
	_, err := fmt.Fprintf(out, "%d ratios are in their ranges, which are those of run %s; %d belong to scenarios that were not selected\n", in, r.Run, skipped)
	return err
}

func checkQuick(run *result.Run, out io.Writer) error {
	for _, s := range run.Scenarios {
		only := &result.Run{Measured: run.Measured}
		if !only.Selected(s.Name + "/") {
			return fmt.Errorf("scenario %s ended and measured nothing", s.Name)
		}
	}
	_, err := fmt.Fprintf(out, "this was a quick run: all %d scenarios ended and measured something; its figures prove nothing and were not looked at\n", len(run.Scenarios))
	return err
}
