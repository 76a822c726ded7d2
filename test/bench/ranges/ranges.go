// SPDX-License-Identifier: Apache-2.0

// Package ranges compares the ratios of a benchmark run with those of an earlier run. It compares no times and no rates,
// because they depend on the machine.
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

// Ranges is the content of the range file.
type Ranges struct {
	// Run is the name of the folder of the earlier run.
	Run string `json:"run"`
	// Ratios are in the order of measurement.
	Ratios []Ratio `json:"ratios"`
}

// Ratio is one measured ratio with its range.
type Ratio struct {
	// Name is "series unit: engine / other engine", or "series unit: engine" if the unit is a ratio.
	Name string `json:"ratio"`
	// Measured is the median of the rounds.
	Measured float64 `json:"measured"`
	// Spread is the minimum and the maximum of the rounds.
	Spread [2]float64 `json:"spread"`
	// Margin extends the spread at both ends.
	Margin float64 `json:"margin"`
}

// Range returns the bounds for the median of another run.
func (r Ratio) Range() (least, most float64) { return r.Spread[0] - r.Margin, r.Spread[1] + r.Margin }

const (
	// usualMargin is relative to the value: the difference between two runs on one machine without other load.
	usualMargin = .25
	// countedMargin is relative to the value, for counts. They do not depend on time.
	countedMargin = .02
	// leastMargin is absolute, for ratios of 0.
	leastMargin = .01
)

// ownRatios contains the units that are ratios, with their margins. Most of them do not depend on time.
var ownRatios = map[string]float64{
	"upstream-B/blob-B": countedMargin, "upstream-req/req": countedMargin, "failed/req": countedMargin,
	"sent-B/blob-B": usualMargin, "hit-B/B": usualMargin,
}

// measure returns the ratios of a run: the values of each engine divided by those of stock and direct, for each round.
func measure(run *result.Run) []Ratio {
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
	// Two runs can differ as much as two rounds of one run.
	r.Margin = round(max(r.Measured*margin, r.Spread[1]-r.Spread[0], leastMargin))
	return r
}

// round rounds to three significant digits. No measurement is more precise.
func round(v float64) float64 {
	if v == 0 {
		return 0
	}
	precision := math.Pow(10, 2-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*precision) / precision
}

// New returns the ranges of a run. It returns an error for a quick run, and for a run with failed scenarios. before, which
// may be nil, is the replaced range file: its margins are kept if they are wider, because a developer has widened them.
func New(name string, run *result.Run, before *Ranges) (*Ranges, error) {
	if run.Quick {
		return nil, fmt.Errorf("run %s is a quick run: its values must not be compared; store a full run", name)
	}
	if err := run.Failed(); err != nil {
		return nil, fmt.Errorf("run %s: %w", name, err)
	}
	r := &Ranges{Run: name, Ratios: measure(run)}
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

const header = `# "make bench-check RUN=<folder>" compares the ratios of a benchmark run with this file. "make bench-store" writes it from the
# run named below. "measured" is the median of the rounds, "spread" their minimum and maximum. The median of another run must
# be between spread[0] - margin and spread[1] + margin. A margin that is widened by hand is kept when the file is replaced.
# The file contains no times and no rates, because they depend on the machine.
`

// Write writes the range file.
func (r *Ranges) Write(path string) error {
	var out strings.Builder
	out.WriteString(header)
	// The YAML library would write each ratio on several lines.
	fmt.Fprintf(&out, "run: %q\nratios:\n", r.Run)
	for _, ratio := range r.Ratios {
		fmt.Fprintf(&out, "- {ratio: %q, measured: %g, spread: [%g, %g], margin: %g}\n", ratio.Name, ratio.Measured, ratio.Spread[0], ratio.Spread[1], ratio.Margin)
	}
	return result.WriteFile(path, []byte(out.String()))
}

// Read reads and validates the range file.
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
		errs = append(errs, errors.New("ratios: must contain at least one entry"))
	}
	seen := map[string]bool{}
	for i, ratio := range r.Ratios {
		path := fmt.Sprintf("ratios[%d]", i)
		switch {
		case ratio.Name == "":
			errs = append(errs, fmt.Errorf("%s.ratio: must not be empty", path))
		case seen[ratio.Name]:
			errs = append(errs, fmt.Errorf("%s.ratio: duplicate value %q", path, ratio.Name))
		}
		seen[ratio.Name] = true
		if ratio.Spread[0] > ratio.Measured || ratio.Measured > ratio.Spread[1] {
			errs = append(errs, fmt.Errorf("%s.spread: [%g, %g] must contain the measured value %g", path, ratio.Spread[0], ratio.Spread[1], ratio.Measured))
		}
		if ratio.Margin < 0 {
			errs = append(errs, fmt.Errorf("%s.margin: is %g, must not be negative", path, ratio.Margin))
		}
	}
	return errors.Join(errs...)
}
