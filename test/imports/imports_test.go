// SPDX-License-Identifier: Apache-2.0

// Package imports tests which packages of this module may import each other.
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

const (
	module = "github.com/registry-cache/extension/"
	// noRule follows the name of a file in a folder without a rule.
	noRule = ": no rule covers this folder; add a rule with its allowed imports"
)

// rule defines the allowed imports of the packages in a folder and below it. If several rules match a file, the rule
// with the longest folder applies.
type rule struct {
	// folder is relative to the module.
	folder string
	// own are the folders of this module that the packages may import, including all packages below them. Packages of the
	// same folder may always be imported.
	own []string
	// tests are additional folders for _test.go files.
	tests []string
	// foreign are prefixes of import paths outside of this module that must not be imported.
	foreign []string
}

// kubernetes must not be imported by the server, which runs and is tested without a cluster.
var kubernetes = []string{"k8s.io/", "sigs.k8s.io/controller-runtime", "sigs.k8s.io/kind", "github.com/gardener/", "helm.sh/"}

// Every allowance must be in use: TestImportsFollowTheRules also fails for folders that no file imports.
var rules = []rule{
	{folder: "hack"},
	{folder: "pkg/oci", foreign: kubernetes},
	{folder: "pkg/imagevector"},
	{folder: "pkg/logfilter"},

	// All programs share it, so it imports no package of this module but its own test cases.
	{folder: "pkg/contract", foreign: kubernetes},

	{
		folder: "pkg/cacheserver", own: []string{"pkg/contract"},
		tests: []string{"pkg/oci", "test/testbed/upstream", "test/testbed/images", "test/testbed/containerdpull"}, foreign: kubernetes,
	},
	{folder: "pkg/cacheserver/config", own: []string{"pkg/cacheserver/evict", "pkg/contract"}, foreign: kubernetes},
	{folder: "pkg/cacheserver/evict", foreign: append([]string{"os", "net", "syscall"}, kubernetes...)},
	{folder: "pkg/cacheserver/volume", foreign: kubernetes},
	{folder: "pkg/cacheserver/store", own: []string{"pkg/cacheserver/evict", "pkg/cacheserver/lru", "pkg/cacheserver/volume", "pkg/oci"}, foreign: append([]string{"net"}, kubernetes...)},
	{folder: "pkg/cacheserver/gc", own: []string{"pkg/cacheserver/evict", "pkg/cacheserver/store", "pkg/cacheserver/volume", "pkg/oci"}, foreign: append([]string{"net"}, kubernetes...)},
	{folder: "pkg/cacheserver/inspect", own: []string{"pkg/cacheserver/evict", "pkg/cacheserver/gc", "pkg/cacheserver/volume", "pkg/oci"}, tests: []string{"pkg/cacheserver/store"}, foreign: append([]string{"net"}, kubernetes...)},
	{folder: "pkg/cacheserver/upstream", own: []string{"pkg/cacheserver/background", "pkg/contract", "pkg/oci"}, foreign: kubernetes},
	{folder: "pkg/cacheserver/upstream/auth", own: []string{"pkg/cacheserver/background"}, foreign: kubernetes},
	{folder: "pkg/cacheserver/result", own: []string{"pkg/cacheserver/upstream"}, foreign: kubernetes},
	{folder: "pkg/cacheserver/answers", own: []string{"pkg/cacheserver/background", "pkg/cacheserver/lru", "pkg/cacheserver/result", "pkg/cacheserver/upstream"}, foreign: kubernetes},
	{folder: "pkg/cacheserver/lru", foreign: append([]string{"os", "net"}, kubernetes...)},
	{folder: "pkg/cacheserver/background", foreign: append([]string{"os", "net"}, kubernetes...)},
	{folder: "pkg/cacheserver/download", own: []string{"pkg/cacheserver/background", "pkg/cacheserver/result", "pkg/cacheserver/store", "pkg/cacheserver/upstream", "pkg/cacheserver/volume"}, tests: []string{"pkg/cacheserver/evict", "pkg/contract"}, foreign: kubernetes},
	{folder: "pkg/cacheserver/blobs", own: []string{"pkg/cacheserver/background", "pkg/cacheserver/download", "pkg/cacheserver/result", "pkg/cacheserver/store", "pkg/cacheserver/upstream"}, tests: []string{"pkg/cacheserver/volume"}, foreign: kubernetes},
	{
		folder: "pkg/cacheserver/manifests",
		own:    []string{"pkg/cacheserver/answers", "pkg/cacheserver/background", "pkg/cacheserver/lru", "pkg/cacheserver/result", "pkg/cacheserver/store", "pkg/cacheserver/upstream", "pkg/oci"},
		tests:  []string{"pkg/cacheserver/evict", "pkg/cacheserver/gc", "pkg/cacheserver/volume"}, foreign: kubernetes,
	},
	{
		folder:  "pkg/cacheserver/pullthrough",
		own:     []string{"pkg/cacheserver/answers", "pkg/cacheserver/background", "pkg/cacheserver/blobs", "pkg/cacheserver/download", "pkg/cacheserver/manifests", "pkg/cacheserver/result", "pkg/cacheserver/store", "pkg/cacheserver/upstream", "pkg/oci"},
		tests:   []string{"pkg/cacheserver/volume", "pkg/contract"},
		foreign: kubernetes,
	},
	{folder: "pkg/cacheserver/httpapi", own: []string{"pkg/cacheserver/blobs", "pkg/cacheserver/download", "pkg/cacheserver/lru", "pkg/cacheserver/manifests", "pkg/cacheserver/pullthrough", "pkg/cacheserver/result", "pkg/cacheserver/volume", "pkg/oci"}, foreign: kubernetes},

	{folder: "pkg/apis", own: []string{"pkg/contract"}},
	{folder: "pkg/admission", own: []string{"pkg/apis"}, tests: []string{"pkg/contract"}},
	{folder: "pkg/extension", own: []string{"pkg/apis", "pkg/contract"}},
	// Integration tests of all packages that the controller's program combines.
	{folder: "pkg/extension/lifecycle", tests: []string{"pkg/apis", "pkg/extension", "test/testbed/controlplane", "test/testbed/gobuild", "test/testbed/poll", "test/testbed/workspace"}},
	{folder: "pkg/extension/desired", own: []string{"pkg/apis", "pkg/cacheserver/config", "pkg/contract"}},
	{folder: "pkg/extension/monitoring", own: []string{"pkg/apis", "pkg/contract"}, tests: []string{"pkg/cacheserver"}},
	{folder: "pkg/nodeconfig", own: []string{"pkg/apis", "pkg/contract"}},
	{folder: "charts", tests: []string{"pkg/apis"}},
	{folder: "cmd", own: []string{"pkg"}},

	// The testbed must not use the code that it tests.
	{folder: "test/testbed", own: []string{"test/testbed/gardenlet", "pkg/apis", "pkg/logfilter", "hack/ociimage"}},
	// It runs in the cluster and, like a gardenlet, uses only Gardener's API for extensions.
	{folder: "test/testbed/gardenlet", own: []string{"test/testbed/poll"}, tests: []string{"test/testbed"}},
	{folder: "test/e2e", own: []string{"test/testbed", "test/mutations", "pkg/apis"}},
	{folder: "test/bench", own: []string{"test/testbed", "pkg/apis", "pkg/oci"}},
	// Tests that all programs treat the same input alike.
	{folder: "test/contract", tests: []string{"pkg/admission", "pkg/apis", "pkg/cacheserver", "pkg/contract", "pkg/extension/desired", "pkg/nodeconfig"}},
	// Runs the cache server in its own process, between registries with quirks and the clients of containerd.
	{folder: "test/differential", tests: []string{"pkg/cacheserver", "test/testbed/containerdpull"}},
	// Runs the cache server as a process, between released registries and released clients.
	{folder: "test/interop", tests: []string{"pkg/cacheserver/config", "test/testbed/containerdpull", "test/testbed/gobuild", "test/testbed/host", "test/testbed/images", "test/testbed/poll", "test/testbed/workspace"}},
	// Mutations edit a copy of the source text and import none of it.
	{folder: "test/mutations"},
	// Rendering and comparing benchmark runs does not depend on the packages that execute them.
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
	used := usage{}
	covered := map[string]bool{}
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
		relative = filepath.ToSlash(relative)
		r := ruleFor(relative)
		if r == nil {
			t.Error(relative + noRule) // also for a file without imports
			return nil
		}
		covered[r.folder] = true
		for _, spec := range syntax.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if complaint := check(relative, imported, used); complaint != "" {
				t.Error(complaint)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(covered) == 0 {
		t.Fatalf("no Go file below %s", root)
	}
	for _, complaint := range unused(covered, used) {
		t.Error(complaint)
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
		{"pkg/contract/server.go", module + "pkg/oci", false},
		{"pkg/contract/contract_test.go", module + "pkg/contract/contracttest", true},
		{"cmd/registry-cache/main.go", module + "test/testbed/host", false},
		{"somewhere/else.go", "fmt", false},
	} {
		if complaint := check(tc.file, tc.imported, usage{}); (complaint == "") != tc.allowed {
			t.Errorf("check(%s, %s) = %q, want allowed = %t", tc.file, tc.imported, complaint, tc.allowed)
		}
	}
}

// TestUnused proves that allowances without an import are found: all rules are unused as long as no file was checked.
func TestUnused(t *testing.T) {
	t.Parallel()
	all := map[string]bool{}
	want := 0
	for _, r := range rules {
		all[r.folder] = true
		want += len(r.own) + len(r.tests)
	}
	used := usage{}
	if got := unused(all, used); len(got) != want {
		t.Errorf("got %d complaints without any import, want one for each of %d allowances", len(got), want)
	}
	if complaint := check("pkg/nodeconfig/nodeconfig.go", module+"pkg/contract", used); complaint != "" {
		t.Error(complaint)
	}
	if got := unused(all, used); len(got) != want-1 || slices.ContainsFunc(got, func(c string) bool { return strings.Contains(c, "pkg/nodeconfig: no file imports pkg/contract") }) {
		t.Errorf("an allowance in use is reported: %v", got)
	}
	delete(all, "pkg/oci")
	if got := unused(all, used); !slices.Contains(got, "pkg/oci: the folder of this rule has no Go file; remove the rule") {
		t.Errorf("a rule without files is not reported: %v", got)
	}
}

// usage contains the allowances that an import needs: the folder of the rule, and the allowed folder.
type usage map[[2]string]bool

// unused returns an error message for each rule whose folder is not in covered, and for each allowance that is not in used.
func unused(covered map[string]bool, used usage) []string {
	var complaints []string
	for _, r := range rules {
		if !covered[r.folder] {
			complaints = append(complaints, r.folder+": the folder of this rule has no Go file; remove the rule")
		}
		for _, allowed := range slices.Concat(r.own, r.tests) {
			if !used[[2]string{r.folder, allowed}] {
				complaints = append(complaints, r.folder+": no file imports "+allowed+"; remove it from the rule")
			}
		}
	}
	return complaints
}

// ruleFor returns the rule that applies to file, nil if there is none.
func ruleFor(file string) *rule {
	folder := path.Dir(file)
	var longest *rule
	for i := range rules {
		if below(folder, rules[i].folder) && (longest == nil || len(rules[i].folder) > len(longest.folder)) {
			longest = &rules[i]
		}
	}
	return longest
}

// check returns the violated rule, or "". It records the allowance that permits the import in used.
func check(file, imported string, used usage) string {
	r := ruleFor(file)
	if r == nil {
		return file + noRule
	}
	own, isOwn := strings.CutPrefix(imported, module)
	if !isOwn {
		for _, prefix := range r.foreign {
			if below(imported, strings.TrimSuffix(prefix, "/")) {
				return file + ": packages in " + r.folder + " must not import " + imported
			}
		}
		return ""
	}
	// Packages below the folder of a rule may import each other if the rule itself covers both.
	if folder := path.Dir(file); below(own, folder) || own == r.folder || ruleFor(own+"/x.go") == r {
		return ""
	}
	allowed := slices.Clone(r.own)
	if strings.HasSuffix(file, "_test.go") {
		allowed = append(allowed, r.tests...)
	}
	index := slices.IndexFunc(allowed, func(prefix string) bool { return below(own, prefix) })
	if index < 0 {
		return file + ": packages in " + r.folder + " must not import " + own
	}
	used[[2]string{r.folder, allowed[index]}] = true
	return ""
}

// below reports whether the slash-separated path p is prefix or lies below it.
func below(p, prefix string) bool { return p == prefix || strings.HasPrefix(p, prefix+"/") }
