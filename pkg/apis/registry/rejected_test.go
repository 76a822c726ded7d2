// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha1"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha2"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

var update = flag.Bool("update", false, "write the errors into the golden files instead of comparing with them")

// rejected is one entry of the golden files: an invalid config and its errors.
type rejected struct {
	Name string `json:"name"`
	// Version is the API version. The test writes apiVersion and kind before Config; "" if Config contains both.
	Version string `json:"version,omitempty"`
	// Old is the previous config, for updates.
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
			t.Errorf("%s: the old config is rejected: %v", tc.Name, errs)
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
	placeholders := fieldPlaceholders(t)
	var cases []rejected
	if err := yaml.UnmarshalStrict(text, &cases); err != nil {
		t.Fatal(err)
	}
	for i, tc := range cases {
		accepted, errs := decode(tc, field.NewPath("spec", "extensions").Index(0).Child("providerConfig"))
		got := withPlaceholders(messages(errs), placeholders)
		if accepted || len(got) == 0 {
			t.Errorf("%s: accepted", tc.Name)
		}
		for _, message := range got {
			if strings.Contains(message, "hunter2") {
				t.Errorf("%s: the message contains the password: %s", tc.Name, message)
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

// fieldPlaceholders maps the list of all fields of a version, as in the message about an unknown field, to a placeholder.
// The golden files contain the placeholders, so that a new field changes none of them.
func fieldPlaceholders(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for version, config := range map[string]any{
		"v1alpha1": &v1alpha1.RegistryConfig{}, "v1alpha2": &v1alpha2.RegistryConfig{}, "v1alpha3": &v1alpha3.RegistryConfig{},
	} {
		all[strings.Join(jsonFields(t, config), ", ")] = "<fields of " + version + ">"
	}
	return all
}

func withPlaceholders(messages []string, placeholders map[string]string) []string {
	for i, message := range messages {
		for list, placeholder := range placeholders {
			// A list must be complete: it ends with the message.
			if before, found := strings.CutSuffix(message, "the fields are "+list); found {
				messages[i] = before + "the fields are " + placeholder
			}
		}
	}
	return messages
}

// jsonFields returns the paths of all fields in the JSON of config, a pointer to a struct. It does not share code with
// the decoder: it sets each field to a value and reads the keys that encoding/json writes.
func jsonFields(t *testing.T, config any) []string {
	t.Helper()
	setAll(reflect.ValueOf(config).Elem())
	content, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	decoder := json.NewDecoder(bytes.NewReader(content))
	token := func() json.Token {
		token, err := decoder.Token()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	var read func(path string)
	read = func(path string) {
		switch token() {
		case json.Delim('{'):
			for decoder.More() {
				read(strings.TrimPrefix(path+"."+token().(string), "."))
			}
			token()
		case json.Delim('['):
			for decoder.More() {
				read(path + "[]")
			}
			token()
		default:
			paths = append(paths, path)
		}
	}
	read("")
	return paths
}

// setAll sets v, and all fields below it, to a value that is not empty. Slices get one element.
func setAll(v reflect.Value) {
	if _, ok := v.Addr().Interface().(json.Marshaler); ok && v.Kind() == reflect.Struct {
		return // a scalar in JSON, such as a quantity
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		setAll(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		setAll(v.Index(0))
	case reflect.Struct:
		for i := range v.NumField() {
			setAll(v.Field(i))
		}
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int32, reflect.Int64:
		v.SetInt(1)
	default:
		panic("no value for " + v.Type().String())
	}
}

// golden returns the content of a golden file: fields in the order of the struct, each message on one line.
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

// header returns apiVersion and kind of a RegistryConfig of the version; "" for no version.
func header(version string) string {
	if version == "" {
		return ""
	}
	return "apiVersion: registry.extensions.gardener.cloud/" + version + "\nkind: RegistryConfig\n"
}
