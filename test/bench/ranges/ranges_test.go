// SPDX-License-Identifier: Apache-2.0

package ranges

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/registry-cache/extension/test/bench/result"
)

func newRun(ours ...float64) *result.Run {
	r := &result.Run{Scenarios: []result.Scenario{{Name: "cold", Done: true}, {Name: "herd", Done: true}}}
	for _, v := range ours {
		r.Add("cold/rtt=80ms", result.Direct, "s", 2)
		r.Add("cold/rtt=80ms", result.Stock, "s", 4)
		r.Add("cold/rtt=80ms", result.Ours, "s", v)
	}
	r.Add("herd/clients=10", result.Stock, "upstream-B/blob-B", 10)
	r.Add("herd/clients=10", result.Ours, "upstream-B/blob-B", 1)
	return r
}

func TestMeasure(t *testing.T) {
	t.Parallel()
	got := measure(newRun(2.2, 2, 2.4))
	want := []Ratio{
		{"cold/rtt=80ms s: ours / stock", .55, [2]float64{.5, .6}, .138},
		{"cold/rtt=80ms s: ours / direct", 1.1, [2]float64{1, 1.2}, .275},
		{"herd/clients=10 upstream-B/blob-B: ours", 1, [2]float64{1, 1}, .02},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// The margin is at least as wide as the spread.
func TestMarginFollowsTheSpread(t *testing.T) {
	t.Parallel()
	if got := measure(newRun(2, 4, 8))[0]; got.Margin != 1.5 {
		t.Errorf("the margin is %g, want 1.5", got.Margin)
	}
}

func TestWriteAndRead(t *testing.T) {
	t.Parallel()
	want, err := New("20260101T000000Z", newRun(2.2), nil)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ranges.yaml")
	if err := want.Write(path); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, %v, want %+v", got, err, want)
	}
}

func TestNewKeepsWiderMargins(t *testing.T) {
	t.Parallel()
	before, err := New("before", newRun(2.2), nil)
	if err != nil {
		t.Fatal(err)
	}
	before.Ratios[0].Margin, before.Ratios[1].Margin = 7, .001
	after, err := New("after", newRun(2.2), before)
	if err != nil || after.Ratios[0].Margin != 7 || after.Ratios[1].Margin != .275 {
		t.Errorf("got %+v, %v", after, err)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	quick, failed := newRun(2), newRun(2)
	quick.Quick = true
	failed.Scenarios[0].Error = "no disk"
	for want, run := range map[string]*result.Run{"quick": quick, "cold failed: no disk": failed, "no ratios": {}} {
		if _, err := New("x", run, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want one about %q", err, want)
		}
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	ranges, err := New("before", newRun(2.2), nil)
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(*result.Run)) *result.Run {
		r := newRun(2.2)
		f(r)
		return r
	}
	for _, tc := range []struct {
		name, wantErr, wantOut string
		run                    *result.Run
	}{
		{"the same", "", "3 ratios are in their ranges", newRun(2.2)},
		{"a little slower", "", "3 ratios are in their ranges", newRun(2.5)},
		{"slower", "2 of 3 ratios are outside", "cold/rtt=80ms s: ours / direct  1.5    0.825 – 1.38   above", newRun(3)},
		{"faster", "2 of 3 ratios are outside", "below", newRun(1)},
		{"missing", "1 of 3 ratios are outside", "missing: the scenario ran", change(func(r *result.Run) { r.Measured = r.Measured[:3] })},
		{"not selected", "", "1 belong to scenarios that were not selected", change(func(r *result.Run) { r.Measured, r.Scenarios = r.Measured[:3], r.Scenarios[:1] })},
		{"nothing of it selected", "none of the scenarios", "", &result.Run{Scenarios: []result.Scenario{{Name: "tag", Done: true}}}},
		{"failed", "scenario cold failed: no disk", "", change(func(r *result.Run) { r.Scenarios[0].Error = "no disk" })},
		{"not started", "scenario herd did not start", "", change(func(r *result.Run) { r.Scenarios[1].Done = false })},
		{"quick", "", "prove nothing", change(func(r *result.Run) { r.Quick, r.Measured[2].Values = true, []float64{100} })},
		{"quick and empty", "scenario herd ended and measured nothing", "", change(func(r *result.Run) { r.Quick, r.Measured = true, r.Measured[:3] })},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			err := ranges.Check(tc.run, &out)
			if (err == nil) != (tc.wantErr == "") || err != nil && !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("the error is %v, want %q", err, tc.wantErr)
			}
			if !strings.Contains(out.String(), tc.wantOut) {
				t.Errorf("no %q in\n%s", tc.wantOut, out.String())
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	t.Parallel()
	for content, want := range map[string]string{
		"run: x\nratios: []\n": "ratios: must contain at least one entry",
		"ratios:\n- {ratio: a, measured: 1, spread: [1, 1], margin: -1}\n":                                                      "ratios[0].margin: is -1",
		"ratios:\n- {ratio: a, measured: 2, spread: [0, 1], margin: 1}\n":                                                       "ratios[0].spread",
		"ratios:\n- {ratio: a, measured: 1, spread: [1, 1], margin: 1}\n- {ratio: a, measured: 1, spread: [1, 1], margin: 1}\n": "ratios[1].ratio: duplicate value \"a\"",
		"ratios:\n- {ratio: a, median: 1}\n":                                                                                    "unknown field",
	} {
		path := filepath.Join(t.TempDir(), "ranges.yaml")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want %q", err, want)
		}
	}
}
