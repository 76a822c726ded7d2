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
			t.Errorf("%.40q: kept is %q", text, o.Message)
		}
	}
}

func TestNoticed(t *testing.T) {
	t.Parallel()
	right, passed := outcome{Name: "n", Failed: true, Right: true}, outcome{Name: "n"}
	for _, tc := range []struct {
		result result
		want   bool
	}{
		{result{}, false}, // nothing is known
		{result{Test: right}, true},
		{result{Test: right, Spec: right}, true},
		{result{Test: right, Spec: passed}, false},
		{result{Spec: outcome{Name: "n", Failed: true}}, false},
	} {
		if got := tc.result.noticed(); got != tc.want {
			t.Errorf("%+v: %t, want %t", tc.result, got, tc.want)
		}
	}
}

func TestReportCountsOnlyWhatWasRun(t *testing.T) {
	t.Parallel()
	all := []mutations.Mutation{
		{Name: "one", Spec: &mutations.Spec{}, Test: &mutations.Test{}},
		{Name: "two", Spec: &mutations.Spec{}},
	}
	r := results{}
	r.add("one", result{Test: outcome{Name: "n", Failed: true, Right: true}})
	r.add("one", result{Spec: outcome{Name: "n"}}) // keeps what is known about the test
	report := string(r.report(all))
	for _, want := range []string{
		"Stories: 2 have to notice, 1 were run, 0 failed for the right reason. Tests: 1 have to notice, 1 were run, 1 failed for the right reason.",
		"**passes**", "| not run |",
	} {
		if !strings.Contains(report, want) {
			t.Errorf("the report lacks %q:\n%s", want, report)
		}
	}
}
