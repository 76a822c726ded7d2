// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"

	"github.com/registry-cache/extension/test/testbed/containerdpull"
	"github.com/registry-cache/extension/test/testbed/gobuild"
	"github.com/registry-cache/extension/test/testbed/host"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// cacheProgram is the cache server of this checkout.
const cacheProgram = "registry-cache"

// goProgram is built from a module that pins its version.
type goProgram struct {
	name    string
	module  string // folder of the go.mod file, relative to the checkout
	pkg     string // to build: a package or "tool"
	version string // path of the Go module whose version is the program's; empty: none
	tags    []string
}

func goPrograms() []goProgram {
	return []goProgram{
		{name: cacheProgram, module: ".", pkg: "./cmd/registry-cache"},
		{name: "crane", module: "hack/interop/crane", pkg: "tool", version: "github.com/google/go-containerregistry"},
		{name: "regctl", module: "hack/interop/regctl", pkg: "tool", version: "github.com/regclient/regclient"},
		{name: "oras", module: "hack/interop/oras", pkg: "tool", version: "oras.land/oras"},
		{name: "helm", module: "hack/interop/helm", pkg: "tool", version: "helm.sh/helm/v4"},
		// The tag replaces a library in C. zot's extensions need other tags.
		{name: "zot", module: "hack/interop/zot", pkg: "tool", version: "zotregistry.io/zot", tags: []string{"containers_image_openpgp"}},
		{name: "distribution", module: "hack/distribution", pkg: "tool", version: "github.com/distribution/distribution/v3"},
	}
}

// debianProgram is a program of a Debian package.
type debianProgram struct {
	name, debianPackage string
	// version are the arguments with which it prints its version.
	version []string
}

func debianPrograms() []debianProgram {
	return []debianProgram{
		{"skopeo", "skopeo", []string{"--version"}},
		{"podman", "podman", []string{"--version"}},
		{"containerd", "containerd", []string{"--version"}},
		{"ctr", "containerd", []string{"--version"}},
		{"docker-registry", "docker-registry", []string{"--version"}},
		{"nginx", "nginx-light", []string{"-v"}},
	}
}

// program is an executable file and its version, for example "1.3.6".
type program struct{ path, version string }

// programs contains all programs of the suite, by name.
type programs map[string]program

// preparePrograms builds the Go programs in dir and installs missing Debian packages.
func preparePrograms(ctx context.Context, dir string) (programs, error) {
	p := programs{}
	if err := p.install(ctx); err != nil {
		return nil, err
	}
	root, err := workspace.Root()
	if err != nil {
		return nil, err
	}
	for _, g := range goPrograms() {
		output := filepath.Join(dir, g.name)
		if err := gobuild.Build(ctx, gobuild.Options{Dir: filepath.Join(root, g.module), Packages: []string{g.pkg}, Output: output, Tags: g.tags}); err != nil {
			return nil, err
		}
		version, err := g.versionOf(output)
		if err != nil {
			return nil, err
		}
		p[g.name] = program{output, version}
	}
	for _, name := range containerdpull.Names() {
		command, err := containerdpull.Build(ctx, name, dir)
		if err != nil {
			return nil, err
		}
		p[name] = program{path: string(command)} // the session knows its version
	}
	return p, nil
}

// install adds the Debian programs. A program that is already installed need not be a Debian package.
func (p programs) install(ctx context.Context) error {
	var missing []string
	for _, d := range debianPrograms() {
		if _, err := exec.LookPath(d.name); err != nil {
			missing = append(missing, d.debianPackage)
		}
	}
	if err := host.InstallPackages(ctx, workspace.NewProgress(os.Stdout), missing...); err != nil {
		return err
	}
	for _, d := range debianPrograms() {
		path, err := exec.LookPath(d.name)
		if err != nil {
			return fmt.Errorf("program %s of the Debian package %s: %w", d.name, d.debianPackage, err)
		}
		version, err := d.versionOf(ctx, path)
		if err != nil {
			return err
		}
		p[d.name] = program{path, version}
	}
	return nil
}

// versionNumber matches the first version number in the output of a program.
var versionNumber = regexp.MustCompile(`\d+\.\d+\.\d+`)

func (d debianProgram) versionOf(ctx context.Context, path string) (string, error) {
	output, err := exec.CommandContext(ctx, path, d.version...).CombinedOutput() // nginx prints to standard error
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", path, strings.Join(d.version, " "), err, lastBytes(output))
	}
	version := versionNumber.FindString(string(output))
	if version == "" {
		return "", fmt.Errorf("%s %s: no version in %q", path, strings.Join(d.version, " "), output)
	}
	return version, nil
}

func (g goProgram) versionOf(path string) (string, error) {
	if g.version == "" {
		return "", nil
	}
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the version of %s: %w", g.name, err)
	}
	return moduleVersion(info, g.version)
}

// moduleVersion returns the version of a module in a program, without the prefix "v".
func moduleVersion(info *debug.BuildInfo, path string) (string, error) {
	for _, module := range append(info.Deps, &info.Main) {
		if module.Path != path {
			continue
		}
		if module.Replace != nil {
			module = module.Replace
		}
		return strings.TrimPrefix(module.Version, "v"), nil
	}
	return "", fmt.Errorf("the program does not contain the module %s", path)
}
