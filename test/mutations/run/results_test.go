// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/registry-cache/extension/test/mutations"
)

func TestJudge(t *testing.T) {
	t.Parallel()
	for text, right := range map[string]bool{
		"a failure:\n  want 1,\n  got 2": true,
		"another failure":                false,
		strings.Repeat("x", 3*maxMessage) + " want 1, got 2 " + strings.Repeat("y", 3*maxMessage): true,
	} {
		var o outcome
		o.judge("want 1, got 2", text)
		if !o.Failed || o.Right != right {
			t.Errorf("%.40q: failed %t, right %t", text, o.Failed, o.Right)
		}
		if right && !strings.Contains(o.Message, "want 1, got 2") || len(o.Message) > maxMessage {
			t.Errorf("%.40q: recorded message: %q", text, o.Message)
		}
	}
}

func TestDetected(t *testing.T) {
	t.Parallel()
	right, passed := outcome{Name: "n", Failed: true, Right: true}, outcome{Name: "n"}
	for _, tc := range []struct {
		result result
		want   bool
	}{
		{result{}, false}, // nothing was run
		{result{Test: right}, true},
		{result{Test: right, Spec: right}, true},
		{result{Test: right, Spec: passed}, false},
		{result{Spec: outcome{Name: "n", Failed: true}}, false},
	} {
		if got := tc.result.detected(); got != tc.want {
			t.Errorf("%+v: %t, want %t", tc.result, got, tc.want)
		}
	}
}

func TestReportCountsOutcomes(t *testing.T) {
	t.Parallel()
	all := []mutations.Mutation{
		{Name: "one", Spec: &mutations.Spec{}, Test: &mutations.Test{}},
		{Name: "two", Spec: &mutations.Spec{}},
	}
	r := results{}
	r.add("one", result{Test: outcome{Name: "n", Failed: true, Right: true}})
	r.add("one", result{Spec: outcome{Name: "n"}}) // keeps the outcome of the test
	report := string(r.report(all))
	for _, want := range []string{
		"- Specs: 2 must fail, 1 were run, 0 failed with the expected message.\n- Tests: 1 must fail, 1 were run, 1 failed with the expected message.\n",
		"**passes**", "| not run |",
	} {
		if !strings.Contains(report, want) {
			t.Errorf("the report does not contain %q:\n%s", want, report)
		}
	}
}
