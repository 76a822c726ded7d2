// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/onsi/ginkgo/v2/types"
	"sigs.k8s.io/yaml"

	"github.com/registry-cache/extension/test/mutations"
)

var update = flag.Bool("update", false, "write the table of the README instead of comparing it")

//go:embed document.yaml
var documentList []byte

// document maps what the user's document says to what proves it; document.yaml says more.
type document struct {
	Sections []struct {
		Name       string      `json:"name"`
		Statements []statement `json:"statements"`
	} `json:"sections"`
}

type statement struct {
	Says  string   `json:"says"`
	Here  string   `json:"here"`
	Specs []string `json:"specs"`
	Tests []struct {
		Package string `json:"package"`
		Name    string `json:"name"`
	} `json:"tests"`
}

// The lines of the README between which the table is.
const (
	tableBegin = "<!-- \"make generate\" writes this table from test/e2e/document.yaml. -->\n"
	tableEnd   = "<!-- The end of the table. -->\n"
)

// allSpecs are the specs of the suite, as another process tells that runs none of them, and needs no cluster. After
// Ginkgo's PreviewSpecs in this one, nothing would be done after each spec any more.
func allSpecs(t *testing.T) types.SpecReports {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "specs.json")
	if out, err := exec.CommandContext(t.Context(), program, "-test.run=^TestE2E$", "-ginkgo.dry-run", "-ginkgo.json-report="+file).CombinedOutput(); err != nil {
		t.Fatalf("listing the specs: %v\n%s", err, out)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var suites []types.Report
	if err := json.Unmarshal(content, &suites); err != nil {
		t.Fatal(err)
	}
	if len(suites) != 1 {
		t.Fatalf("%s has %d suites, want 1", file, len(suites))
	}
	specs := suites[0].SpecReports.WithLeafNodeType(types.NodeTypeIt)
	if len(specs) == 0 {
		t.Fatal("there are no specs")
	}
	return specs
}

func TestMutationsNameSpecs(t *testing.T) {
	specs := allSpecs(t)
	all, err := mutations.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, mutation := range all {
		if mutation.Spec != nil && !slices.ContainsFunc(specs, func(spec types.SpecReport) bool { return spec.FullText() == mutation.Spec.Text }) {
			t.Errorf("mutation %s: there is no spec %q", mutation.Name, mutation.Spec.Text)
		}
	}
}

// Each statement of the user's document is proved by specs that exist, and the README says which.
func TestDocument(t *testing.T) {
	var d document
	if err := yaml.UnmarshalStrict(documentList, &d); err != nil {
		t.Fatal(err)
	}
	table := d.table(t, allSpecs(t))
	file := filepath.Join("..", "..", "README.md")
	readme, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := bytes.Cut(readme, []byte(tableBegin))
	_, after, closed := bytes.Cut(rest, []byte(tableEnd))
	if !found || !closed {
		t.Fatalf("README.md has no place for the table: write\n%s%s", tableBegin, tableEnd)
	}
	wanted := slices.Concat(before, []byte(tableBegin), table, []byte(tableEnd), after)
	switch {
	case bytes.Equal(readme, wanted):
	case *update:
		if err := os.WriteFile(file, wanted, 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Error(`the table in README.md is out of date: run "make generate"`)
	}
}

// table is that of the README.
func (d document) table(t *testing.T, specs types.SpecReports) []byte {
	t.Helper()
	var text bytes.Buffer
	text.WriteString("\n| the document says | better here | story: specs |\n| --- | --- | --- |\n")
	for _, section := range d.Sections {
		fmt.Fprintf(&text, "| **%s** | | |\n", section.Name)
		for _, s := range section.Statements {
			if s.Says == "" || len(s.Specs) == 0 {
				t.Errorf("%s: %q has no spec", section.Name, s.Says)
			}
			var proofs proofs
			for _, name := range s.Specs {
				file, text, ok := specProof(specs, name)
				if !ok {
					t.Errorf("%s: %q: there is no spec %q", section.Name, s.Says, name)
				}
				proofs.add("test/e2e/"+file, text)
			}
			for _, test := range s.Tests {
				file, ok := testFile(t, test.Package, test.Name)
				if !ok {
					t.Errorf("%s: %q: there is no test %s in %s", section.Name, s.Says, test.Name, test.Package)
				}
				proofs.add(file, test.Name)
			}
			fmt.Fprintf(&text, "| %s | %s | %s |\n", s.Says, s.Here, strings.Join(proofs.lines, "<br>"))
		}
	}
	text.WriteString("\n")
	return text.Bytes()
}

// proofs are lines of a cell of the table, one for each file.
type proofs struct {
	lines []string
	last  string // the file of the last line
}

func (p *proofs) add(file, text string) {
	if file == p.last {
		p.lines[len(p.lines)-1] += "; " + text
		return
	}
	p.last = file
	story := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), "story_"), "_test.go")
	p.lines = append(p.lines, fmt.Sprintf("[%s](%s): %s", story, file, text))
}

// specProof returns the file of a spec, and its text without that of its container.
func specProof(specs types.SpecReports, name string) (file, text string, ok bool) {
	prefix, several := strings.CutSuffix(name, " …")
	var found types.SpecReports
	for _, spec := range specs {
		if text := spec.FullText(); text == name || several && strings.HasPrefix(text, prefix+" ") {
			found = append(found, spec)
		}
	}
	if len(found) == 0 || several && len(found) == 1 {
		return "", "", false
	}
	containers := found[0].ContainerHierarchyTexts
	text = strings.Join(append(slices.Clone(containers[1:]), found[0].LeafNodeText), ": ")
	if several {
		text = fmt.Sprintf("%s … (%d)", strings.TrimPrefix(prefix, containers[0]+" "), len(found))
	}
	return filepath.Base(found[0].FileName()), text, true
}

// testFile returns the file with a Go test of a package, both relative to the root of the checkout.
func testFile(t *testing.T, pkg, name string) (file string, ok bool) {
	t.Helper()
	root := filepath.Join("..", "..")
	files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(pkg), "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, declared := range parsed.Decls {
			if function, ok := declared.(*ast.FuncDecl); ok && function.Recv == nil && function.Name.Name == name {
				return pkg + "/" + filepath.Base(file), true
			}
		}
	}
	return "", false
}

func TestSpecProof(t *testing.T) {
	spec := func(file, leaf string, containers ...string) types.SpecReport {
		return types.SpecReport{ContainerHierarchyTexts: containers, LeafNodeText: leaf, LeafNodeLocation: types.CodeLocation{FileName: "/somewhere/" + file}}
	}
	specs := types.SpecReports{
		spec("story_a_test.go", "once", "A user", "pulls"), spec("story_a_test.go", "twice", "A user", "pulls"), spec("story_b_test.go", "leaves", "A user"),
	}
	for name, want := range map[string]string{
		"A user pulls once": "story_a_test.go pulls: once",
		"A user pulls …":    "story_a_test.go pulls … (2)",
		"A user leaves":     "story_b_test.go leaves",
		"A user leaves …":   "", // one alone is not several
		"A user pulls":      "",
		"A user":            "",
	} {
		file, text, ok := specProof(specs, name)
		if ok != (want != "") || ok && file+" "+text != want {
			t.Errorf("%q: %q %q %t, want %q", name, file, text, ok, want)
		}
	}
}
