// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the errors into the golden files instead of comparing with them")

// rejected is one entry of the golden files with what Shoot owners write wrongly, and what they are told.
type rejected struct {
	Name string `json:"name"`
	// Version is put before Config, with the right kind. "" if Config has it all.
	Version string `json:"version,omitempty"`
	// Old is, for updates, what Config replaces.
	Old    string   `json:"old,omitempty"`
	Config string   `json:"config"`
	Errors []string `json:"errors"`
}

func TestRejectedConfigs(t *testing.T) {
	t.Parallel()
	testRejected(t, "rejected.yaml", func(tc rejected, path *field.Path) (bool, field.ErrorList) {
		config, errs := Decode(toJSON(t, header(tc.Version)+tc.Config), path)
		return config != nil, errs
	})
}

func TestRejectedUpdates(t *testing.T) {
	t.Parallel()
	testRejected(t, "rejected-updates.yaml", func(tc rejected, path *field.Path) (bool, field.ErrorList) {
		old, raw := toJSON(t, header(tc.Version)+tc.Old), toJSON(t, header(tc.Version)+tc.Config)
		if _, errs := Decode(old, path); len(errs) > 0 {
			t.Errorf("%s: the old config is refused, too: %v", tc.Name, errs)
		}
		_, errs := decode(raw, old, path)
		return len(errs) == 0, errs
	})
}

func testRejected(t *testing.T, file string, decode func(tc rejected, path *field.Path) (accepted bool, errs field.ErrorList)) {
	t.Helper()
	file = filepath.Join("testdata", file)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var cases []rejected
	if err := yaml.UnmarshalStrict(text, &cases); err != nil {
		t.Fatal(err)
	}
	for i, tc := range cases {
		accepted, errs := decode(tc, field.NewPath("spec", "extensions").Index(0).Child("providerConfig"))
		got := messages(errs)
		if accepted || len(got) == 0 {
			t.Errorf("%s: accepted", tc.Name)
		}
		for _, message := range got {
			if strings.Contains(message, "hunter2") {
				t.Errorf("%s: the password is repeated: %s", tc.Name, message)
			}
		}
		if *update {
			cases[i].Errors = got
		} else if diff := cmp.Diff(tc.Errors, got); diff != "" {
			t.Errorf("%s: -want +got (write it with go test -update):\n%s", tc.Name, diff)
		}
	}
	if *update {
		if err := os.WriteFile(file, golden(cases), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// golden writes the cases in the order of their fields, and every message on one line.
func golden(cases []rejected) []byte {
	var b bytes.Buffer
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
	block := func(key, text string) {
		fmt.Fprintf(&b, "  %s: |\n    %s\n", key, strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n    "))
	}
	for _, tc := range cases {
		fmt.Fprintf(&b, "- name: %s\n", quote(tc.Name))
		if tc.Version != "" {
			fmt.Fprintf(&b, "  version: %s\n", tc.Version)
		}
		if tc.Old != "" {
			block("old", tc.Old)
		}
		block("config", tc.Config)
		fmt.Fprintln(&b, "  errors:")
		for _, message := range tc.Errors {
			fmt.Fprintf(&b, "  - %s\n", quote(message))
		}
	}
	return b.Bytes()
}

// header is the beginning of a RegistryConfig of that version, "" for none.
func header(version string) string {
	if version == "" {
		return ""
	}
	return "apiVersion: registry.extensions.gardener.cloud/" + version + "\nkind: RegistryConfig\n"
}
