// SPDX-License-Identifier: Apache-2.0

package mutations

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const root = "../.."

func TestMutationsApply(t *testing.T) {
	t.Parallel()
	all, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 12 {
		t.Errorf("got %d mutations, want at least 12", len(all))
	}
	for _, mutation := range all {
		changed, err := mutation.Mutate(root)
		if err != nil {
			t.Error(err)
		}
		for file, content := range changed {
			if !strings.HasSuffix(file, ".go") {
				continue
			}
			if _, err := parser.ParseFile(token.NewFileSet(), file, content, parser.SkipObjectResolution); err != nil {
				t.Errorf("mutation %s: the edited file does not parse: %v", mutation.Name, err)
			}
		}
		if mutation.Test != nil && !hasTest(t, mutation.Test.Package, mutation.Test.Name) {
			t.Errorf("mutation %s: there is no test %s in %s", mutation.Name, mutation.Test.Name, mutation.Test.Package)
		}
	}
}

func hasTest(t *testing.T, pkg, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(pkg), "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(content), "\nfunc "+name+"(t *testing.T)") {
			return true
		}
	}
	return false
}

func TestMutate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("one two two"), 0o644); err != nil {
		t.Fatal(err)
	}
	edit := func(find, replace string) Edit { return Edit{File: "file", Find: find, Replace: replace} }
	changed, err := Mutation{Name: "m", Edits: []Edit{edit("one", "three"), edit("three ", "")}}.Mutate(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(changed["file"]); got != "two two" {
		t.Errorf("got %q", got)
	}
	for _, find := range []string{"two", "four"} {
		if _, err := (Mutation{Name: "m", Edits: []Edit{edit(find, "")}}).Mutate(dir); err == nil || !strings.Contains(err.Error(), "instead of once") {
			t.Errorf("replacing %q: got %v", find, err)
		}
	}
}
