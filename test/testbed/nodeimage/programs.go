// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/registry-cache/extension/test/testbed/gobuild"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

const (
	kindModule       = "sigs.k8s.io/kind"
	kubernetesModule = "k8s.io/kubernetes"
)

// module is a Go module whose programs are in the node image.
type module struct {
	// dir is the folder of the go.mod file, relative to the checkout.
	dir string
	// path is the module that gives the version.
	path string
	// programs are the import paths to build by the names of the programs.
	programs []program
	tags     []string
	// ldflags returns the linker's flags for the version ("v1.34.4"); nil means none.
	ldflags func(version string) string
	// sources are the program's own files, for a program of this repository.
	sources []string
}

type program struct{ name, path string }

func modules() []module {
	kubernetes := module{dir: "hack/kind/kubernetes", path: kubernetesModule, ldflags: kubernetesFlags}
	// kubeadm first: it is the smallest of those that compile most of the code, so the first line comes soonest.
	for _, name := range []string{"kubeadm", "kubelet", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubectl"} {
		kubernetes.programs = append(kubernetes.programs, program{name, kubernetesModule + "/cmd/" + name})
	}
	const containerdModule = "github.com/containerd/containerd/v2"
	containerd := module{
		dir: "hack/kind/containerd", path: containerdModule,
		// The snapshotters that a node does not use.
		tags:    []string{"no_aufs", "no_btrfs", "no_devmapper", "no_zfs"},
		ldflags: func(version string) string { return "-X " + containerdModule + "/version.Version=" + version },
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		containerd.programs = append(containerd.programs, program{name, containerdModule + "/cmd/" + name})
	}
	const etcdModule, corednsModule = "go.etcd.io/etcd/server/v3", "github.com/coredns/coredns"
	return []module{
		kubernetes,
		containerd,
		{dir: "hack/kind/etcd", path: etcdModule, programs: []program{{"etcd", etcdModule}}},
		{dir: "hack/kind/coredns", path: corednsModule, programs: []program{{"coredns", corednsModule}}},
		{dir: ".", programs: []program{{"pause", "./hack/kind/pause"}}, sources: []string{"hack/kind/pause/main.go"}},
	}
}

// kubernetesFlags set what "version" prints: kubeadm refuses to work with a kubelet of another version.
func kubernetesFlags(version string) string {
	const base, client = "k8s.io/component-base/version", "k8s.io/client-go/pkg/version"
	var flags []string
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	for _, pkg := range []string{base, client} {
		for _, pair := range []string{"gitVersion=" + version, "gitMajor=" + major, "gitMinor=" + minor, "gitTreeState=clean", "buildDate=1970-01-01T00:00:00Z"} {
			flags = append(flags, "-X "+pkg+"."+pair)
		}
	}
	return strings.Join(flags, " ")
}

// moduleInputs are the inputs of the module's programs.
func (b *builder) moduleInputs(ctx context.Context, m module) (inputs, error) {
	goVersion, err := b.goCommand(ctx, filepath.Join(b.root, m.dir), "env", "GOVERSION", "GOARCH")
	if err != nil {
		return nil, err
	}
	in := inputs{{"go", goVersion}, {"programs", fmt.Sprint(m.programs)}, {"tags", strings.Join(m.tags, ",")}}
	if m.ldflags != nil {
		version, err := b.version(ctx, m)
		if err != nil {
			return nil, err
		}
		in = append(in, input{"flags", m.ldflags(version)})
	}
	files := m.sources
	if len(files) == 0 {
		files = []string{filepath.Join(m.dir, "go.mod"), filepath.Join(m.dir, "go.sum")}
	}
	of, err := fileInputs(b.root, files...)
	return append(in, of...), err
}

// version returns the module's version as its go.mod file has it.
func (b *builder) version(ctx context.Context, m module) (string, error) {
	if m.path == "" {
		return "", nil
	}
	return b.goCommand(ctx, filepath.Join(b.root, m.dir), "list", "-m", "-f", "{{.Version}}", m.path)
}

// Programs returns the paths of some of the node image's programs by name, such as "etcd", without an image. Programs that
// are not in workspace.CacheDir are built, which takes minutes.
func Programs(ctx context.Context, p *workspace.Progress, names ...string) (map[string]string, error) {
	b, err := newBuilder(nil, p)
	if err != nil {
		return nil, err
	}
	return b.buildPrograms(ctx, names...)
}

// FindPrograms is Programs, but builds nothing: fs.ErrNotExist is in the error if one is missing.
func FindPrograms(ctx context.Context, names ...string) (map[string]string, error) {
	b, err := newBuilder(nil, nil)
	if err != nil {
		return nil, err
	}
	b.findOnly = true
	return b.buildPrograms(ctx, names...)
}

// buildPrograms returns the paths of the programs with these names, of all if there are none, by name. Those that were
// built from the same inputs before are reused, each other one is a step of its own.
func (b *builder) buildPrograms(ctx context.Context, names ...string) (map[string]string, error) {
	paths := map[string]string{}
	for _, m := range modules() {
		wanted := slices.DeleteFunc(slices.Clone(m.programs), func(prog program) bool {
			return len(names) > 0 && !slices.Contains(names, prog.name)
		})
		if len(wanted) == 0 {
			continue
		}
		of, err := b.moduleInputs(ctx, m)
		if err != nil {
			return nil, err
		}
		version, err := b.version(ctx, m)
		if err != nil {
			return nil, err
		}
		flags := ""
		if m.ldflags != nil {
			flags = m.ldflags(version)
		}
		for _, prog := range wanted {
			output := filepath.Join(b.cache, "programs", of.hash(), prog.name)
			paths[prog.name] = output
			if _, err := os.Stat(output); err == nil {
				continue
			} else if b.findOnly {
				return nil, fmt.Errorf("looking for %s: %w", prog.name, err)
			}
			err := b.progress.Step(strings.TrimSpace("building "+prog.name+" "+version), func() error {
				return b.buildProgram(ctx, m, prog, flags, output)
			})
			if err != nil {
				return nil, err
			}
		}
	}
	return paths, nil
}

func (b *builder) buildProgram(ctx context.Context, m module, prog program, flags, output string) (err error) {
	if err := os.MkdirAll(filepath.Dir(output), 0o755); err != nil {
		return err
	}
	// A name of its own: the node image and the test control planes may be made at the same time.
	dir, err := os.MkdirTemp(filepath.Dir(output), "partial-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	partial := filepath.Join(dir, prog.name)
	err = gobuild.Build(ctx, gobuild.Options{
		Dir: filepath.Join(b.root, m.dir), Packages: []string{prog.path}, Output: partial, LDFlags: flags, Tags: m.tags,
	})
	if err != nil {
		return err
	}
	return os.Rename(partial, output)
}

// runGo returns what the go command prints, without the last line's end.
func runGo(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stderr = dir, &stderr
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("running go %s in %s: %w: %s", strings.Join(args, " "), dir, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(string(out)), nil
}
