// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"slices"
	"strings"

	"github.com/registry-cache/extension/test/bench/result"
)

// moreIsBetter lists the units for which a larger value is better.
var moreIsBetter = []string{"req/cpu-s", "GiB/s", "hit-B/B"}

// negligible is the relative difference of medians that is ignored as noise of the machine.
const negligible = .02

// loss is a measurement in which this server is worse than an alternative.
type loss struct {
	Name, Engine, Unit string
	To                 string
	Ours, Theirs       string
	// Ratio is the worse median divided by the better one.
	Ratio string
	// Within is true if the ranges of the values overlap. The difference may then be noise.
	Within bool
}

// losses returns all measurements in which the median of this server is worse than that of an alternative.
func losses(r *result.Run) []loss {
	var all []loss
	for _, s := range r.Measured {
		if s.Engine == result.Direct || s.Engine == result.Stock || slices.Contains([]string{result.StaleDocument, result.StaleDialTimeout}, s.Engine) {
			continue
		}
		for _, to := range []string{result.Stock, result.Direct} {
			other := r.Get(s.Name, to, s.Unit)
			if len(other.Values) == 0 || len(s.Values) == 0 {
				continue
			}
			a, b := s, other
			if slices.Contains(moreIsBetter, s.Unit) {
				a, b = other, s
			}
			if a.Median() <= b.Median()*(1+negligible) {
				continue
			}
			all = append(all, loss{
				Name: s.Name, Engine: s.Engine, Unit: s.Unit, To: to, Ours: spread(s.Values), Theirs: spread(other.Values),
				Ratio:  ratio(a.Median(), b.Median()),
				Within: result.Percentile(a.Values, 0) <= result.Percentile(b.Values, 100),
			})
		}
	}
	return all
}

// ratio formats a / b; "∞" if b is 0.
func ratio(a, b float64) string {
	if b == 0 {
		return "∞"
	}
	return times(a / b)
}

// missed returns the targets that are not met.
func missed(r *result.Run) []string {
	var all []string
	for _, t := range targets {
		if h := hold(r, t); len(h.values) > 0 && !h.met {
			all = append(all, fmt.Sprintf("%s: target %s, measured %s", t.what, strings.TrimSpace(wanted(t, h.limit)), spread(h.values)))
		}
	}
	return all
}
