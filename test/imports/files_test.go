// SPDX-License-Identifier: Apache-2.0

package imports

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/tools/go/packages"
)

// foldersOfOrderedFiles are the folders in which the files of a package do not use each other's functions in both directions,
// with all folders below them: a reader understands one file of a pair first.
var foldersOfOrderedFiles = []string{"pkg/cacheserver", "pkg/oci"}

// TestFilesCallInOneDirection loads the packages with their types, which takes some seconds after a change.
func TestFilesCallInOneDirection(t *testing.T) {
	t.Parallel()
	var patterns []string
	for _, folder := range foldersOfOrderedFiles {
		patterns = append(patterns, "./"+folder+"/...")
	}
	loaded, err := packages.Load(&packages.Config{
		Context: t.Context(),
		Dir:     filepath.Join("..", ".."),
		Mode:    packages.NeedName | packages.NeedFiles | packages.NeedImports | packages.NeedSyntax | packages.NeedTypes | packages.NeedTypesInfo | packages.NeedExportFile,
	}, patterns...)
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	for _, p := range loaded {
		for _, err := range p.Errors {
			t.Error(err)
		}
		found := callsBetweenFiles(p)
		calls += len(found)
		for _, pair := range slices.SortedFunc(maps.Keys(found), compareCalls) {
			if back := (fileCall{pair.to, pair.from}); pair.from < pair.to && found[back] != "" {
				t.Errorf("%s: %s uses %s, and %s uses %s", p.PkgPath, pair.from, found[pair], pair.to, found[back])
			}
		}
	}
	if calls < 50 {
		t.Errorf("only %d calls between files were found", calls)
	}
}

// fileCall is the use of a function or method that is declared in another file of the same package.
type fileCall struct{ from, to string }

func compareCalls(a, b fileCall) int {
	return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to))
}

// isAbstract reports that the function is a method of an interface. Its use says nothing about the file of the implementation.
func isAbstract(f *types.Func) bool {
	receiver := f.Signature().Recv()
	return receiver != nil && types.IsInterface(receiver.Type())
}

// callsBetweenFiles returns the calls between the files of a package, with an example of the functions that are used.
func callsBetweenFiles(p *packages.Package) map[fileCall]string {
	found := map[fileCall]string{}
	for _, syntax := range p.Syntax {
		from := filepath.Base(p.Fset.Position(syntax.Pos()).Filename)
		ast.Inspect(syntax, func(node ast.Node) bool {
			identifier, ok := node.(*ast.Ident)
			if !ok {
				return true
			}
			function, ok := p.TypesInfo.Uses[identifier].(*types.Func)
			if !ok || function.Pkg() != p.Types || isAbstract(function) {
				return true
			}
			position := p.Fset.Position(function.Origin().Pos())
			if to := filepath.Base(position.Filename); to != from {
				found[fileCall{from, to}] = fmt.Sprintf("%s (line %d)", function.Name(), p.Fset.Position(identifier.Pos()).Line)
			}
			return true
		})
	}
	return found
}

// TestCallsBetweenFiles proves that calls of functions and methods are found in both directions, and calls of interfaces are not.
func TestCallsBetweenFiles(t *testing.T) {
	t.Parallel()
	p := &packages.Package{Fset: token.NewFileSet(), TypesInfo: &types.Info{Uses: map[*ast.Ident]types.Object{}}}
	for name, text := range map[string]string{
		"a.go": "package p; type A struct{}; func (A) Method() { helper() }; type I interface{ Abstract() }",
		"b.go": "package p; func helper() { A{}.Method() }",
		"c.go": "package p; func other(i I) { i.Abstract() }; var _ = generic[int]",
		"d.go": "package p; func generic[T any](T) { _ = A{} }",
	} {
		syntax, err := parser.ParseFile(p.Fset, name, text, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		p.Syntax = append(p.Syntax, syntax)
	}
	p.Types = types.NewPackage("p", "p")
	if err := types.NewChecker(&types.Config{}, p.Fset, p.Types, p.TypesInfo).Files(p.Syntax); err != nil {
		t.Fatal(err)
	}
	got := slices.SortedFunc(maps.Keys(callsBetweenFiles(p)), compareCalls)
	if want := []fileCall{{"a.go", "b.go"}, {"b.go", "a.go"}, {"c.go", "d.go"}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
