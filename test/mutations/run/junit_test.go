// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/xml"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/onsi/ginkgo/v2/reporters"
)

func TestJUnitReport(t *testing.T) {
	t.Parallel()
	var s suite
	s.add("detected", result{Spec: outcome{Name: "a spec", Failed: true, Right: true, Seconds: 3}})
	s.add("undetected", result{Test: outcome{Name: "a test", Seconds: 2}})
	s.addError("broken", errors.New("does not compile"))
	file := filepath.Join(t.TempDir(), "reports", "mutations.xml")
	if err := s.write(file); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got reporters.JUnitTestSuites
	if err := xml.Unmarshal(content, &got); err != nil {
		t.Fatalf("reading the report: %v\n%s", err, content)
	}
	if got.Tests != 3 || got.Failures != 1 || got.Errors != 1 || got.Time != 5 || len(got.TestSuites) != 1 {
		t.Fatalf("totals of the report:\n%s", content)
	}
	for i, want := range []struct {
		name          string
		failed, error bool
	}{
		{"detected: a spec", false, false},
		{"undetected: a test", true, false},
		{"broken", false, true},
	} {
		c := got.TestSuites[0].TestCases[i]
		if c.Name != want.name || (c.Failure != nil) != want.failed || (c.Error != nil) != want.error {
			t.Errorf("test case %d: %+v, want %+v", i, c, want)
		}
	}
}
