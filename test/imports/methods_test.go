// SPDX-License-Identifier: Apache-2.0

package imports

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// maxMethods is the maximum number of methods that a type declares. A type with more has more than one responsibility.
const maxMethods = 20

// foldersOfSmallTypes are the folders in which maxMethods applies, with all folders below them.
var foldersOfSmallTypes = []string{"pkg/cacheserver", "pkg/contract", "pkg/oci", "cmd"}

// TestTypesHaveFewMethods counts the methods of types. Methods of embedded types do not count.
func TestTypesHaveFewMethods(t *testing.T) {
	methods := map[string]int{} // by folder and type
	for _, folder := range foldersOfSmallTypes {
		countMethods(t, folder, methods)
	}
	for name, n := range methods {
		if n > maxMethods {
			t.Errorf("%s has %d methods, want at most %d", name, n, maxMethods)
		}
	}
	if len(methods) < 100 {
		t.Errorf("only %d types with methods were found", len(methods))
	}
}

// countMethods adds the number of methods of each type in a folder and below it.
func countMethods(t *testing.T, folder string, methods map[string]int) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join("..", "..", folder), func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(file, ".go") {
			return err
		}
		syntax, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, declaration := range syntax.Decls {
			if function, ok := declaration.(*ast.FuncDecl); ok && function.Recv != nil {
				methods[filepath.Dir(file)+"."+receiver(function.Recv.List[0].Type)]++
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// receiver returns the name of the type of a receiver, without the pointer and the type parameters.
func receiver(expression ast.Expr) string {
	switch e := expression.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	default:
		return "?"
	}
}
