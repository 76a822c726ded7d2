// SPDX-License-Identifier: Apache-2.0

// Package mutations holds breakages of the product that somebody could make by mistake, and for each of them the spec and
// the test that have to notice. "make mutations" makes them one by one in a copy of the checkout and runs those.
//
// A test that never fails proves nothing: this is the proof of the proofs.
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

// Mutation is one breakage. At least one of Spec and Test is there.
type Mutation struct {
	// Name is unique, in words with hyphens between.
	Name string `json:"name"`
	// Breaks says which promise is broken, as a user would notice.
	Breaks string `json:"breaks"`
	// Edits are made together. What they leave compiles.
	Edits []Edit `json:"edits"`
	// Spec is the user story that notices, on the kind-based Shoot.
	Spec *Spec `json:"spec,omitempty"`
	// Test notices sooner, without a cluster.
	Test *Test `json:"test,omitempty"`
}

// Edit replaces text in a file.
type Edit struct {
	// File is relative to the root of the checkout, with slashes.
	File string `json:"file"`
	// Find is there exactly once.
	Find string `json:"find"`
	// Replace takes its place.
	Replace string `json:"replace"`
}

// Spec is a spec of test/e2e that fails for the right reason.
type Spec struct {
	// Text is the full text of it: those of its containers and its own, with spaces between.
	Text string `json:"text"`
	// Message is a part of the failure, or of what By has announced before it.
	Message string `json:"message"`
}

// Test is a Go test that fails for the right reason.
type Test struct {
	// Package is relative to the root of the checkout: ./pkg/...
	Package string `json:"package"`
	// Name is that of the function.
	Name string `json:"name"`
	// Message is a part of its output.
	Message string `json:"message"`
}

// Load returns all mutations, in the order of the file.
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
			return nil, fmt.Errorf("mutations[%d]: the name %q is there twice", i, mutation.Name)
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
			return fmt.Errorf("edits[%d]: file, find and another replace are required", i)
		}
	}
	return nil
}

// Mutate returns the changed files of the checkout at root, by their path relative to it. Nothing is written. It is an
// error if an edit does not apply any more.
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
			return nil, fmt.Errorf("mutation %s: %s has the text to replace %d times instead of once, so the mutation has to follow the code: %q", m.Name, edit.File, n, edit.Find)
		}
		changed[edit.File] = []byte(strings.Replace(string(content), edit.Find, edit.Replace, 1))
	}
	return changed, nil
}
