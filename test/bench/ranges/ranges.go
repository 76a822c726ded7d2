// SPDX-License-Identifier: Apache-2.0

// Package ranges holds the ratios of a run of the benchmarks against those of an earlier one. Only ratios are compared,
// because they say the same on every machine; a time or a rate does not.
package ranges

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/registry-cache/extension/test/bench/result"
)

// Ranges is the range file.
type Ranges struct {
	// Run is the folder of the run that the ratios were measured in.
	Run string `json:"run"`
	// Ratios are in the order in which they were measured.
	Ratios []Ratio `json:"ratios"`
}

// Ratio is one measured ratio, and how far another run may be from it.
type Ratio struct {
	// Name is "series unit: engine / other engine", or "series unit: engine" where the unit is a ratio itself.
	Name string `json:"ratio"`
	// Measured is the median.
	Measured float64 `json:"measured"`
	// Spread is the least and the most of the rounds.
	Spread [2]float64 `json:"spread"`
	// Margin is by how much the median of another run may leave the spread, at both ends.
	Margin float64 `json:"margin"`
}

// Range is what the median of another run must be in.
func (r Ratio) Range() (least, most float64) { return r.Spread[0] - r.Margin, r.Spread[1] + r.Margin }

const (
	// usualMargin, as a share of the value, is what figures of two quiet runs on one machine differ by.
	usualMargin = .25
	// countedMargin is for what is counted, not timed.
	countedMargin = .02
	// leastMargin is for ratios of 0.
	leastMargin = .01
)

// ownRatios are the units that are ratios themselves, with their margins: nothing in most of them depends on a clock.
var ownRatios = map[string]float64{
	"upstream-B/blob-B": countedMargin, "upstream-req/req": countedMargin, "failed/req": countedMargin,
	"sent-B/blob-B": usualMargin, "hit-B/B": usualMargin,
}

// Measure returns the ratios that a run has: each engine divided by stock, and by direct, round by round.
func Measure(run *result.Run) []Ratio {
	var all []Ratio
	for _, s := range run.Measured {
		if margin, ok := ownRatios[s.Unit]; ok {
			if s.Engine == result.Ours {
				all = append(all, newRatio(s.Name+" "+s.Unit+": "+s.Engine, s.Values, margin))
			}
			continue
		}
		for _, other := range []string{result.Stock, result.Direct} {
			to := run.Get(s.Name, other, s.Unit)
			rounds := min(len(s.Values), len(to.Values))
			if s.Engine == result.Stock || s.Engine == result.Direct || rounds == 0 {
				continue
			}
			var values []float64
			for i := range rounds {
				if to.Values[i] != 0 {
					values = append(values, s.Values[i]/to.Values[i])
				}
			}
			if len(values) > 0 {
				all = append(all, newRatio(fmt.Sprintf("%s %s: %s / %s", s.Name, s.Unit, s.Engine, other), values, usualMargin))
			}
		}
	}
	return all
}

func newRatio(name string, values []float64, margin float64) Ratio {
	r := Ratio{Name: name, Measured: round(result.Percentile(values, 50)), Spread: [2]float64{round(slices.Min(values)), round(slices.Max(values))}}
	// What the rounds differ by in one run, two runs may differ by as well.
	r.Margin = round(max(r.Measured*margin, r.Spread[1]-r.Spread[0], leastMargin))
	return r
}

// round keeps three digits that count, which is more than any measurement is good for.
func round(v float64) float64 {
	if v == 0 {
		return 0
	}
	precision := math.Pow(10, 2-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*precision) / precision
}

// New makes the range file of a run. A quick run, and one with scenarios that failed, prove nothing and are an error.
// Margins of the file before it, which may be nil, stay where they are wider than the usual ones: somebody has widened
// them.
func New(name string, run *result.Run, before *Ranges) (*Ranges, error) {
	if run.Quick {
		return nil, fmt.Errorf("run %s was a quick one, which proves no figure: make a full one", name)
	}
	if err := run.Failed(); err != nil {
		return nil, fmt.Errorf("run %s: %w", name, err)
	}
	r := &Ranges{Run: name, Ratios: Measure(run)}
	if len(r.Ratios) == 0 {
		return nil, fmt.Errorf("run %s has no ratios", name)
	}
	for i, ratio := range r.Ratios {
		if before == nil {
			break
		}
		for _, old := range before.Ratios {
			if old.Name == ratio.Name {
				r.Ratios[i].Margin = max(ratio.Margin, old.Margin)
			}
		}
	}
	return r, nil
}

const header = `# Ratios that runs of "make bench" are held against by "make bench-check RUN=<folder>", made from the run named below by
# "make bench-store". "measured" is the median of the rounds, "spread" the least and the most of them. The median of another
# run must be between spread[0] - margin and spread[1] + margin. A margin may be widened by hand, and stays as wide when the
# file is made again. There are no times and no rates in it: those are for one machine only.
`

// Write makes the file.
func (r *Ranges) Write(path string) error {
	var out strings.Builder
	out.WriteString(header)
	// By hand, because one ratio on a line is easier to read, and to compare with the line before.
	fmt.Fprintf(&out, "run: %q\nratios:\n", r.Run)
	for _, ratio := range r.Ratios {
		fmt.Fprintf(&out, "- {ratio: %q, measured: %g, spread: [%g, %g], margin: %g}\n", ratio.Name, ratio.Measured, ratio.Spread[0], ratio.Spread[1], ratio.Margin)
	}
	return result.WriteFile(path, []byte(out.String()))
}

// Read reads and validates the file.
func Read(path string) (*Ranges, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &Ranges{}
	if err := yaml.UnmarshalStrict(content, r); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if err := r.validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

func (r *Ranges) validate() error {
	var errs []error
	if len(r.Ratios) == 0 {
		errs = append(errs, errors.New("ratios: there are none, so nothing would be checked"))
	}
	seen := map[string]bool{}
	for i, ratio := range r.Ratios {
		path := fmt.Sprintf("ratios[%d]", i)
		switch {
		case ratio.Name == "":
			errs = append(errs, fmt.Errorf("%s.ratio: must not be empty", path))
		case seen[ratio.Name]:
			errs = append(errs, fmt.Errorf("%s.ratio: %q is there twice", path, ratio.Name))
		}
		seen[ratio.Name] = true
		if ratio.Spread[0] > ratio.Measured || ratio.Measured > ratio.Spread[1] {
			errs = append(errs, fmt.Errorf("%s.spread: [%g, %g] does not have the measured %g in it", path, ratio.Spread[0], ratio.Spread[1], ratio.Measured))
		}
		if ratio.Margin < 0 {
			errs = append(errs, fmt.Errorf("%s.margin: is %g, must be 0 or more", path, ratio.Margin))
		}
	}
	return errors.Join(errs...)
}
