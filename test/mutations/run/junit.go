// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/xml"
	"os"
	"path/filepath"

	"github.com/onsi/ginkgo/v2/reporters"
)

// suite collects the outcomes of one run of this command for its JUnit report. A test case passes if the spec or test
// failed with the expected message.
type suite struct{ cases []reporters.JUnitTestCase }

// add adds the outcomes of a mutation that were run.
func (s *suite) add(mutation string, r result) {
	for _, o := range []outcome{r.Spec, r.Test} {
		if !o.ran() {
			continue
		}
		added := reporters.JUnitTestCase{Name: mutation + ": " + o.Name, Status: "passed", Time: float64(o.Seconds)}
		if !o.Right {
			added.Status = "failed"
			added.Failure = &reporters.JUnitFailure{Message: "the mutation was not detected", Type: "failed", Description: o.String()}
		}
		s.cases = append(s.cases, added)
	}
}

// addError adds a mutation for which the outcome is unknown.
func (s *suite) addError(mutation string, err error) {
	s.cases = append(s.cases, reporters.JUnitTestCase{
		Name: mutation, Status: "error", Error: &reporters.JUnitError{Message: "the mutation was not tested", Type: "error", Description: err.Error()},
	})
}

// write writes the report to a file and creates its folder.
func (s *suite) write(file string) error {
	all := reporters.JUnitTestSuite{Name: "mutations", Package: "test/mutations", Tests: len(s.cases), TestCases: s.cases}
	for _, c := range s.cases {
		all.Time += c.Time
		if c.Failure != nil {
			all.Failures++
		}
		if c.Error != nil {
			all.Errors++
		}
	}
	content, err := xml.MarshalIndent(reporters.JUnitTestSuites{
		Tests: all.Tests, Failures: all.Failures, Errors: all.Errors, Time: all.Time, TestSuites: []reporters.JUnitTestSuite{all},
	}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, append([]byte(xml.Header), content...), 0o644)
}
