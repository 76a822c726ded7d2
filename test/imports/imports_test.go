// SPDX-License-Identifier: Apache-2.0

// Package imports holds the test that keeps the packages of this module apart as the design wants them.
package imports

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/registry-cache/extension/"

// rule says what the packages below a folder may import. The longest folder that matches a file counts.
type rule struct {
	// folder is relative to the module.
	folder string
	// own are the folders of this module that may be imported, with everything below them. The file's own folder
	// always may, and "" means all.
	own []string
	// tests are allowed in addition in _test.go files.
	tests []string
	// foreign are prefixes of import paths outside of this module that must not be imported.
	foreign []string
}

// The server must be usable, and testable, without a cluster.
var kubernetes = []string{"k8s.io/", "sigs.k8s.io/controller-runtime", "sigs.k8s.io/kind", "github.com/gardener/", "helm.sh/"}

var rules = []rule{
	{folder: "hack", own: []string{"hack"}},
	{folder: "pkg/oci", foreign: kubernetes},
	{folder: "pkg/imagevector"},
	// All programs share it, so it imports no package of this module but its own test cases.
	{folder: "pkg/contract", foreign: kubernetes},

	{folder: "pkg/cacheserver", own: []string{"pkg/cacheserver", "pkg/contract", "pkg/oci"}, tests: []string{"test/testbed/upstream", "test/testbed/images", "test/testbed/containerdpull"}, foreign: kubernetes},
	{folder: "pkg/cacheserver/config", own: []string{"pkg/cacheserver/evict", "pkg/contract"}, foreign: kubernetes},
	{folder: "pkg/cacheserver/evict", own: []string{"pkg/oci"}, foreign: append([]string{"os", "net", "syscall"}, kubernetes...)},
	{folder: "pkg/cacheserver/store", own: []string{"pkg/cacheserver/evict", "pkg/oci"}, foreign: append([]string{"net"}, kubernetes...)},
	{folder: "pkg/cacheserver/inspect", own: []string{"pkg/cacheserver/store", "pkg/cacheserver/evict", "pkg/oci"}, foreign: append([]string{"net"}, kubernetes...)},
	{folder: "pkg/cacheserver/upstream", own: []string{"pkg/contract", "pkg/oci"}, foreign: kubernetes},
	{folder: "pkg/cacheserver/pullthrough", own: []string{"pkg/cacheserver/store", "pkg/cacheserver/upstream", "pkg/oci"}, tests: []string{"pkg/cacheserver/evict"}, foreign: kubernetes},
	{folder: "pkg/cacheserver/httpapi", own: []string{"pkg/cacheserver/pullthrough", "pkg/oci"}, foreign: kubernetes},

	{folder: "pkg/apis", own: []string{"pkg/apis", "pkg/contract"}},
	{folder: "pkg/admission", own: []string{"pkg/apis"}, tests: []string{"pkg/contract"}},
	{folder: "pkg/extension", own: []string{"pkg/apis", "pkg/contract", "pkg/extension"}},
	// Only tests, of all that the controller's program puts together.
	{folder: "pkg/extension/lifecycle", tests: []string{"pkg/apis", "pkg/extension", "pkg/nodeconfig", "test/testbed/controlplane", "test/testbed/gobuild", "test/testbed/poll", "test/testbed/workspace"}},
	{folder: "pkg/extension/desired", own: []string{"pkg/apis", "pkg/cacheserver/config", "pkg/contract"}},
	{folder: "pkg/extension/monitoring", own: []string{"pkg/apis", "pkg/contract"}, tests: []string{"pkg/cacheserver"}},
	{folder: "pkg/nodeconfig", own: []string{"pkg/apis", "pkg/contract"}},
	{folder: "charts", own: []string{"pkg/apis"}},
	{folder: "cmd", own: []string{"pkg"}},

	// The testbed must not prove the product with the product's own code.
	{folder: "test/testbed", own: []string{"test/testbed", "pkg/apis", "pkg/oci", "hack/ociimage"}},
	// It runs in the cluster, and knows extensions by what any gardenlet knows of them.
	{folder: "test/testbed/gardenlet", own: []string{"test/testbed/poll"}, tests: []string{"test/testbed"}},
	{folder: "test/e2e", own: []string{"test/testbed", "test/mutations", "pkg/apis", "pkg/oci", "hack/ociimage"}},
	{folder: "test/bench", own: []string{"test/testbed", "pkg/apis", "pkg/oci", "hack/ociimage"}},
	// What is broken is edited as text, in a copy, and never imported.
	{folder: "test/mutations"},
	// What shows and compares runs needs nothing that makes them.
	{folder: "test/bench/result"},
	{folder: "test/bench/chart"},
	{folder: "test/bench/report", own: []string{"test/bench/chart", "test/bench/result"}},
	{folder: "test/bench/ranges", own: []string{"test/bench/result"}},
	{folder: "test/bench/runs", own: []string{"test/bench/ranges", "test/bench/report", "test/bench/result"}},
	{folder: "test/docs"},
	{folder: "test/imports"},
}

func TestImportsFollowTheRules(t *testing.T) {
	root := filepath.Join("..", "..")
	files := 0
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name := entry.Name(); name != ".." && strings.HasPrefix(name, ".") || name == "testdata" || file == filepath.Join(root, "bin") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") {
			return nil
		}
		relative, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		syntax, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		files++
		for _, spec := range syntax.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if complaint := check(filepath.ToSlash(relative), imported); complaint != "" {
				t.Error(complaint)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files == 0 {
		t.Fatalf("no Go file below %s", root)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		file, imported string
		allowed        bool
	}{
		{"pkg/cacheserver/httpapi/serve.go", module + "pkg/cacheserver/pullthrough", true},
		{"pkg/cacheserver/httpapi/serve.go", module + "pkg/cacheserver/store", false},
		{"pkg/cacheserver/store/store.go", "net/http", false},
		{"pkg/cacheserver/store/store.go", "k8s.io/api/core/v1", false},
		{"pkg/cacheserver/server_test.go", module + "test/testbed/upstream", true},
		{"pkg/cacheserver/server.go", module + "test/testbed/upstream", false},
		{"pkg/nodeconfig/files.go", module + "pkg/extension/desired", false},
		{"test/testbed/shoot/shoot.go", module + "pkg/extension", false},
		{"test/testbed/shoot/shoot.go", module + "pkg/apis/registry/v1alpha3", true},
		{"cmd/registry-cache/main.go", module + "test/testbed/host", false},
		{"somewhere/else.go", "fmt", false},
	} {
		if complaint := check(tc.file, tc.imported); (complaint == "") != tc.allowed {
			t.Errorf("check(%s, %s) = %q, want allowed = %t", tc.file, tc.imported, complaint, tc.allowed)
		}
	}
}

// check returns what is wrong with an import in a file, or "".
func check(file, imported string) string {
	folder := path.Dir(file)
	var longest *rule
	for i := range rules {
		if below(folder, rules[i].folder) && (longest == nil || len(rules[i].folder) > len(longest.folder)) {
			longest = &rules[i]
		}
	}
	if longest == nil {
		return file + ": no rule covers this folder; add one that says what it may import"
	}
	own, isOwn := strings.CutPrefix(imported, module)
	if !isOwn {
		for _, prefix := range longest.foreign {
			if below(imported, strings.TrimSuffix(prefix, "/")) {
				return file + ": packages in " + longest.folder + " must not import " + imported
			}
		}
		return ""
	}
	allowed := slices.Clone(longest.own)
	if strings.HasSuffix(file, "_test.go") {
		allowed = append(allowed, longest.tests...)
	}
	if below(own, folder) || below(own, longest.folder) || slices.ContainsFunc(allowed, func(prefix string) bool { return below(own, prefix) }) {
		return ""
	}
	return file + ": packages in " + longest.folder + " must not import " + own
}

// below tells whether the slash-separated path is prefix or lies in it.
func below(p, prefix string) bool { return p == prefix || strings.HasPrefix(p, prefix+"/") }
