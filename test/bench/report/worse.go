// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"slices"
	"strings"

	"github.com/registry-cache/extension/test/bench/result"
)

// moreIsBetter are the units of which more is better; of all others less is.
var moreIsBetter = []string{"req/cpu-s", "GiB/s", "hit-B/B"}

// negligible is the share by which medians of one machine differ without a reason.
const negligible = .02

// loss is a measurement in which an engine of ours is not better than another one.
type loss struct {
	Name, Engine, Unit string
	To                 string
	Ours, Theirs       string
	// Factor is how many times it is worse.
	Factor string
	// Within says that the spreads overlap, so that the difference may be none.
	Within bool
}

// losses are all measurements in which the median of ours is worse than that of another engine.
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
				Factor: factor(a.Median(), b.Median()),
				Within: result.Percentile(a.Values, 0) <= result.Percentile(b.Values, 100),
			})
		}
	}
	return all
}

// factor writes how many times a is b; where b is nothing, that is no number.
func factor(a, b float64) string {
	if b == 0 {
		return "∞"
	}
	return times(a / b)
}

// missed are the targets that are not met.
func missed(r *result.Run) []string {
	var all []string
	for _, t := range targets {
		if h := hold(r, t); len(h.values) > 0 && !h.met {
			all = append(all, fmt.Sprintf("%s: wanted %s, measured %s", t.what, strings.TrimSpace(wanted(t, h.limit)), spread(h.values)))
		}
	}
	return all
}
