// SPDX-License-Identifier: Apache-2.0

// Package mutations lists deliberate defects of the product, and for each of them the spec and the test that must fail.
// "make mutations" applies the mutations one after the other to a copy of the checkout and runs that spec and that
// test.
//
// The reason: a test that passes with a defective product proves nothing.
package mutations

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

//go:embed mutations.yaml
var list []byte

// Mutation is one deliberate defect. At least one of Spec and Test is set.
type Mutation struct {
	// Name is unique: lower-case words, joined by hyphens. It is the key in results.json and an anchor in
	// docs/mutations.md.
	Name string `json:"name"`
	// Breaks describes the effect of the defect for a user: one sentence with a full stop.
	Breaks string `json:"breaks"`
	// Edits are applied together. The edited packages must compile.
	Edits []Edit `json:"edits"`
	// Spec must fail on the kind-based Shoot. Nil if no story covers the defect.
	Spec *Spec `json:"spec,omitempty"`
	// Test must fail without a cluster. Nil if no test covers the defect.
	Test *Test `json:"test,omitempty"`
}

// Edit replaces text in a file.
type Edit struct {
	// File is relative to the root of the checkout, with slashes.
	File string `json:"file"`
	// Find occurs exactly once in the file.
	Find string `json:"find"`
	// Replace is the new text. It differs from Find and may be empty.
	Replace string `json:"replace"`
}

// Spec is a spec of test/e2e with the failure that the mutation must cause.
type Spec struct {
	// Text is the full text of the spec: the texts of its containers and its own text, joined by spaces.
	Text string `json:"text"`
	// Message is a substring of the last By text before the failure and of the failure message, joined by ": ". Runs of
	// white space count as one space.
	Message string `json:"message"`
}

// Test is a Go test with the failure that the mutation must cause.
type Test struct {
	// Package is relative to the root of the checkout: ./pkg/...
	Package string `json:"package"`
	// Name is the name of the test function.
	Name string `json:"name"`
	// Message is a substring of the test output. Runs of white space count as one space.
	Message string `json:"message"`
}

// Load returns all mutations in the order of mutations.yaml. It returns an error if the file is invalid.
func Load() ([]Mutation, error) {
	var file struct {
		Mutations []Mutation `json:"mutations"`
	}
	if err := yaml.UnmarshalStrict(list, &file); err != nil {
		return nil, fmt.Errorf("reading mutations.yaml: %w", err)
	}
	names := map[string]bool{}
	for i, mutation := range file.Mutations {
		if err := mutation.check(); err != nil {
			return nil, fmt.Errorf("mutations[%d] %q: %w", i, mutation.Name, err)
		}
		if names[mutation.Name] {
			return nil, fmt.Errorf("mutations[%d]: name: Duplicate value: %q", i, mutation.Name)
		}
		names[mutation.Name] = true
	}
	return file.Mutations, nil
}

func (m Mutation) check() error {
	switch {
	case m.Name == "" || m.Breaks == "":
		return errors.New("name and breaks are required")
	case len(m.Edits) == 0:
		return errors.New("edits are required")
	case m.Spec == nil && m.Test == nil:
		return errors.New("spec or test is required")
	case m.Spec != nil && (m.Spec.Text == "" || m.Spec.Message == ""):
		return errors.New("spec: text and message are required")
	case m.Test != nil && (m.Test.Package == "" || m.Test.Name == "" || m.Test.Message == ""):
		return errors.New("test: package, name and message are required")
	}
	for i, edit := range m.Edits {
		if edit.File == "" || edit.Find == "" || edit.Find == edit.Replace {
			return fmt.Errorf("edits[%d]: file, find and a different replace are required", i)
		}
	}
	return nil
}

// Mutate returns the content of each edited file, keyed by its path relative to root, the root of a checkout. It writes
// nothing. It returns an error if a file does not contain the text of an edit exactly once: the mutation must then be
// adapted to the changed code.
func (m Mutation) Mutate(root string) (map[string][]byte, error) {
	changed := map[string][]byte{}
	for _, edit := range m.Edits {
		content, ok := changed[edit.File]
		if !ok {
			var err error
			if content, err = os.ReadFile(filepath.Join(root, filepath.FromSlash(edit.File))); err != nil {
				return nil, fmt.Errorf("mutation %s: %w", m.Name, err)
			}
		}
		if n := strings.Count(string(content), edit.Find); n != 1 {
			return nil, fmt.Errorf("mutation %s: %s contains the text to replace %d times instead of once; adapt the mutation to the changed code: %q", m.Name, edit.File, n, edit.Find)
		}
		changed[edit.File] = []byte(strings.Replace(string(content), edit.Find, edit.Replace, 1))
	}
	return changed, nil
}
