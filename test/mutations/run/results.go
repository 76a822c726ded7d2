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

// outcome is what a spec or a test made of a mutation. The zero value says that it was not run.
type outcome struct {
	Name string `json:"name,omitempty"`
	// Commit is what was broken.
	Commit string `json:"commit,omitempty"`
	// Failed, and with the expected message.
	Failed bool `json:"failed,omitempty"`
	Right  bool `json:"right,omitempty"`
	// Message is a part of the failure.
	Message string `json:"message,omitempty"`
	// Seconds are what it took, the installation of the product included.
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
		return fmt.Sprintf("%s: failed FOR ANOTHER REASON after %d s: %s", o.Name, o.Seconds, o.Message)
	}
	return fmt.Sprintf("%s: failed after %d s: %s", o.Name, o.Seconds, o.Message)
}

// result is what became of a mutation.
type result struct {
	Test outcome `json:"test,omitzero"`
	Spec outcome `json:"spec,omitzero"`
}

// noticed says that something was run, and all of it failed for the right reason.
func (r result) noticed() bool {
	outcomes := []outcome{r.Test, r.Spec}
	ran := slices.ContainsFunc(outcomes, outcome.ran)
	return ran && !slices.ContainsFunc(outcomes, func(o outcome) bool { return o.ran() && !o.Right })
}

// results are the latest ones, by the name of the mutation.
type results map[string]result

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

// add replaces what is known about a mutation. What was not run this time keeps its outcome.
func (r results) add(name string, latest result) {
	before := r[name]
	if !latest.Spec.ran() {
		latest.Spec = before.Spec
	}
	if !latest.Test.ran() {
		latest.Test = before.Test
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

const introduction = `# Does a test notice?

Written by ` + "`make mutations`" + `, which breaks the product on purpose, in a copy of the checkout, and runs what has to fail then: the user
story on the kind-based Shoot, which gets the broken product, and, where there is one, the test that notices sooner. Each has to fail for the
right reason: with the text that [mutations.yaml](../test/mutations/mutations.yaml) expects.

`

// report is a table of the mutations, and below it what failed, with its message.
func (r results) report(all []mutations.Mutation) []byte {
	var text bytes.Buffer
	text.WriteString(introduction)
	var stories, tests tally
	for _, m := range all {
		stories.count(m.Spec != nil, r[m.Name].Spec)
		tests.count(m.Test != nil, r[m.Name].Test)
	}
	fmt.Fprintf(&text, "%d mutations. Stories: %s. Tests: %s.\n\n", len(all), stories, tests)
	text.WriteString("| mutation | what is broken | story | test |\n| --- | --- | --- | --- |\n")
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
		for _, o := range []outcome{found.Spec, found.Test} {
			if o.ran() {
				fmt.Fprintf(&text, "- %s (at %s)\n\n  ```\n  %s\n  ```\n", o.Name, o.Commit, strings.ReplaceAll(o.Message, "```", "'''"))
			}
		}
	}
	return text.Bytes()
}

// tally counts what has to notice, what was run, and what has failed for the right reason.
type tally struct{ wanted, run, right int }

func (t *tally) count(wanted bool, o outcome) {
	if !wanted {
		return
	}
	t.wanted++
	if o.ran() {
		t.run++
	}
	if o.Right {
		t.right++
	}
}

func (t tally) String() string {
	return fmt.Sprintf("%d have to notice, %d were run, %d failed for the right reason", t.wanted, t.run, t.right)
}

func verdict(o outcome, wanted bool) string {
	switch {
	case !wanted:
		return ""
	case !o.ran():
		return "not run"
	case o.Right:
		return fmt.Sprintf("fails, %d s", o.Seconds)
	case o.Failed:
		return "**fails for another reason**"
	}
	return "**passes**"
}
