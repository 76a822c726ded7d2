// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/registry-cache/extension/test/mutations"
)

// outcome is the result of one spec or test with a mutated product. In the zero value the spec or test was not run.
type outcome struct {
	// Name is the full text of the spec, or the package and the name of the test.
	Name string `json:"name,omitempty"`
	// Commit is the commit to which the mutation was applied, 12 hexadecimal digits.
	Commit string `json:"commit,omitempty"`
	// Failed reports whether the spec or test failed.
	Failed bool `json:"failed,omitempty"`
	// Right reports whether it failed with the expected message.
	Right bool `json:"right,omitempty"`
	// Message is the part of the failure around the expected message, at most maxMessage bytes.
	Message string `json:"message,omitempty"`
	// Seconds is the duration in seconds. For a spec it includes the installation of the product.
	Seconds int `json:"seconds,omitempty"`
}

func (o outcome) ran() bool { return o.Name != "" }

func (o outcome) String() string {
	switch {
	case !o.ran():
		return "not run"
	case !o.Failed:
		return fmt.Sprintf("%s: PASSED after %d s", o.Name, o.Seconds)
	case !o.Right:
		return fmt.Sprintf("%s: failed WITH ANOTHER MESSAGE after %d s: %s", o.Name, o.Seconds, o.Message)
	}
	return fmt.Sprintf("%s: failed after %d s: %s", o.Name, o.Seconds, o.Message)
}

// result contains the outcomes of one mutation.
type result struct {
	Test outcome `json:"test,omitzero"`
	Spec outcome `json:"spec,omitzero"`
}

// detected reports whether the test or the spec was run, and each one that was run failed with the expected message.
func (r result) detected() bool {
	outcomes := []outcome{r.Test, r.Spec}
	ran := slices.ContainsFunc(outcomes, outcome.ran)
	return ran && !slices.ContainsFunc(outcomes, func(o outcome) bool { return o.ran() && !o.Right })
}

// results contains the latest result of each mutation, by the name of the mutation.
type results map[string]result

// readResults returns the stored results. A missing file contains none.
func readResults(file string) (results, error) {
	content, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return results{}, nil
	} else if err != nil {
		return nil, err
	}
	read := results{}
	if err := json.Unmarshal(content, &read); err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	return read, nil
}

// add replaces the stored outcomes of a mutation. A spec or test that was not run keeps its previous outcome.
func (r results) add(name string, latest result) {
	previous := r[name]
	if !latest.Spec.ran() {
		latest.Spec = previous.Spec
	}
	if !latest.Test.ran() {
		latest.Test = previous.Test
	}
	r[name] = latest
}

func (r results) write(file string) error {
	var content bytes.Buffer
	encoder := json.NewEncoder(&content)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(r); err != nil {
		return err
	}
	return os.WriteFile(file, content.Bytes(), 0o644)
}

func (r results) writeReport(file string, all []mutations.Mutation) error {
	return os.WriteFile(file, r.report(all), 0o644)
}

const introduction = `# Mutations

A mutation is a deliberate defect in the product. It proves that a test can fail: a test that passes with a defective product proves nothing.

` + "`make mutations`" + ` applies each mutation of [mutations.yaml](../test/mutations/mutations.yaml) to a copy of the checkout. Then it runs
one spec of a story on the kind-based Shoot with the mutated product, and one Go test, which needs no cluster. Some mutations have only a spec or
only a test. Each of them must fail with the expected message of mutations.yaml. A failure with another message does not count.

The command generates this page from the stored outcomes in [results.json](../test/mutations/results.json). In the table, the duration of a spec
includes the installation of the mutated product, and that of a test its compilation. The sections below the table contain the failure messages,
shortened and as the named commit has printed them. Names of specs are the current ones; the commit may have used another name.

`

// report returns docs/mutations.md: a table of all mutations, then the failure messages of each one.
func (r results) report(all []mutations.Mutation) []byte {
	var text bytes.Buffer
	text.WriteString(introduction)
	var specs, tests tally
	for _, m := range all {
		specs.count(m.Spec != nil, r[m.Name].Spec)
		tests.count(m.Test != nil, r[m.Name].Test)
	}
	fmt.Fprintf(&text, "There are %d mutations.\n\n- Specs: %s.\n- Tests: %s.\n\n", len(all), specs, tests)
	text.WriteString("| mutation | effect of the defect | spec | test |\n| --- | --- | --- | --- |\n")
	for _, m := range all {
		found := r[m.Name]
		fmt.Fprintf(&text, "| [%s](#%s) | %s | %s | %s |\n", m.Name, m.Name, m.Breaks, verdict(found.Spec, m.Spec != nil), verdict(found.Test, m.Test != nil))
	}
	for _, m := range all {
		found := r[m.Name]
		if !found.Spec.ran() && !found.Test.ran() {
			continue
		}
		fmt.Fprintf(&text, "\n## %s\n\n", m.Name)
		writeMessage(&text, "Spec", found.Spec)
		writeMessage(&text, "Test", found.Test)
	}
	return text.Bytes()
}

// writeMessage writes the failure message of a spec or test that was run as an item of a list.
func writeMessage(text *bytes.Buffer, kind string, o outcome) {
	if o.ran() {
		fmt.Fprintf(text, "- %s: %s (commit %s)\n\n  ```\n  %s\n  ```\n", kind, o.Name, o.Commit, strings.ReplaceAll(o.Message, "```", "'''"))
	}
}

// tally counts the specs or tests that must fail, that were run, and that failed with the expected message.
type tally struct{ required, run, right int }

func (t *tally) count(required bool, o outcome) {
	if !required {
		return
	}
	t.required++
	if o.ran() {
		t.run++
	}
	if o.Right {
		t.right++
	}
}

func (t tally) String() string {
	return fmt.Sprintf("%d must fail, %d were run, %d failed with the expected message", t.required, t.run, t.right)
}

// verdict returns the cell of the table for one outcome: empty if the mutation has no such spec or test.
func verdict(o outcome, required bool) string {
	switch {
	case !required:
		return ""
	case !o.ran():
		return "not run"
	case o.Right:
		return fmt.Sprintf("fails after %d s", o.Seconds)
	case o.Failed:
		return "**fails with another message**"
	}
	return "**passes**"
}
