// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/registry-cache/extension/test/testbed/workspace"
)

const (
	// daemonWait bounds how long the docker daemon may take to answer.
	daemonWait = 10 * time.Second
	// sysctls is where the kernel's settings are files.
	sysctls = "/proc/sys"
)

// Prepare makes this host ready and returns its container engine: docker where its daemon answers, else rootful
// podman. Missing Debian packages are installed, restrictions are detected and adapted to, and each such thing is
// reported in a line. Nothing is changed on a host that cannot work; the error says why in one sentence.
//
// podman's settings for this host are a file of their own in workspace.CacheDir, selected by CONTAINERS_CONF; no
// configuration of the system is edited.
func Prepare(ctx context.Context, p *workspace.Progress) (*Engine, error) {
	packages := packageManager{run: runProgram}
	facts, err := gather(ctx, packages)
	if err != nil {
		return nil, err
	}
	a, err := Adapt(facts)
	if err != nil {
		return nil, err
	}
	if err := packages.install(ctx, p, a.Packages...); err != nil {
		return nil, err
	}
	for _, note := range a.Notes {
		p.Printf("%s", note)
	}
	for name, value := range a.Sysctls {
		if err := os.WriteFile(filepath.Join(sysctls, name), []byte(strconv.FormatUint(value, 10)), 0o644); err != nil {
			return nil, fmt.Errorf("raising a kernel setting that the nodes need: %w", err)
		}
	}
	if a.MakeModulesDir {
		if err := os.MkdirAll("/lib/modules", 0o755); err != nil {
			return nil, err
		}
	}
	return newEngine(ctx, a)
}

// ErrNoEngine says that no container engine is installed: nothing of a testbed can be there.
var ErrNoEngine = errors.New("no container engine is installed")

// Find returns the container engine that Prepare would return, and changes nothing on the host: for what only looks or
// removes. It is ErrNoEngine where Prepare would have to install one.
func Find(ctx context.Context) (*Engine, error) {
	facts, err := gather(ctx, packageManager{run: runProgram})
	if err != nil {
		return nil, err
	}
	a, err := Adapt(facts)
	if err != nil {
		return nil, err
	}
	if a.Engine == Podman && !facts.PodmanInstalled {
		return nil, ErrNoEngine
	}
	return newEngine(ctx, a)
}

func newEngine(ctx context.Context, a Adaptations) (*Engine, error) {
	e := &Engine{Name: a.Engine, extra: []string{"KIND_EXPERIMENTAL_PROVIDER=" + a.Engine}}
	if a.ContainersConf != "" {
		dir, err := workspace.CacheDir()
		if err != nil {
			return nil, err
		}
		conf := filepath.Join(dir, "containers.conf")
		if err := writeFile(conf, a.ContainersConf); err != nil {
			return nil, fmt.Errorf("writing podman's settings: %w", err)
		}
		e.extra = append(e.extra, "CONTAINERS_CONF="+conf)
	}
	if _, err := e.Run(ctx, nil, "info", "--format", "{{json .}}"); err != nil {
		return nil, fmt.Errorf("trying %s: %w", e.Name, err)
	}
	return e, nil
}

// writeFile replaces the file by rename: another run may be reading it.
func writeFile(path, content string) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func gather(ctx context.Context, packages packageManager) (Facts, error) {
	f := Facts{
		UID:             os.Geteuid(),
		Wanted:          os.Getenv("KIND_EXPERIMENTAL_PROVIDER"),
		DockerAnswers:   dockerAnswers(ctx),
		PodmanInstalled: haveProgram(Podman),
		AptGet:          haveProgram("apt-get") && haveProgram("dpkg-query"),
		MissingPackages: map[string][]string{},
		MissingPrograms: map[string][]string{},
		Sysctls:         map[string]uint64{},
		KernelModules:   exists("/lib/modules"),
		LoopDevices:     exists("/dev/loop-control"),
		CgroupV1:        !exists("/sys/fs/cgroup/cgroup.controllers"),
		OwnConfig:       os.Getenv("CONTAINERS_CONF"),
	}
	for _, engine := range []string{Docker, Podman} {
		if f.AptGet {
			missing, err := packages.missing(ctx, RequiredPackages(engine))
			if err != nil {
				return f, err
			}
			f.MissingPackages[engine] = missing
		}
		for _, program := range requiredPrograms(engine, f.CgroupV1) {
			if !haveProgram(program) {
				f.MissingPrograms[engine] = append(f.MissingPrograms[engine], program)
			}
		}
	}
	var err error
	if f.MaxPID, err = readSysctl("kernel/pid_max"); err != nil {
		return f, err
	}
	for name := range wantedSysctls() {
		if f.Sysctls[name], err = readSysctl(name); err != nil {
			return f, err
		}
	}
	if f.CapSysResource, err = hasCapability(unix.CAP_SYS_RESOURCE); err != nil {
		return f, err
	}
	for resource, limit := range map[int]*uint64{unix.RLIMIT_NOFILE: &f.OpenFiles, unix.RLIMIT_NPROC: &f.Processes} {
		var r unix.Rlimit
		if err := unix.Getrlimit(resource, &r); err != nil {
			return f, fmt.Errorf("reading resource limit %d: %w", resource, err)
		}
		*limit = r.Max
	}
	return f, nil
}

func dockerAnswers(ctx context.Context) bool {
	if !haveProgram(Docker) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, daemonWait)
	defer cancel()
	return run(ctx, os.Environ(), nil, io.Discard, Docker, "version", "--format", "{{.Server.Version}}") == nil
}

func haveProgram(name string) bool {
	_, err := exec.LookPath(name)
	return err == nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func readSysctl(name string) (uint64, error) {
	content, err := os.ReadFile(filepath.Join(sysctls, name))
	if err != nil {
		return 0, fmt.Errorf("reading a kernel setting: %w", err)
	}
	number, err := strconv.ParseUint(strings.TrimSpace(string(content)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading the kernel setting %s: %w", name, err)
	}
	return number, nil
}

// hasCapability tells whether the capability is in the bounding set of this process, from "CapBnd:" in
// /proc/self/status, see proc_pid_status(5).
func hasCapability(capability uint) (bool, error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return false, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		value, found := strings.CutPrefix(lines.Text(), "CapBnd:")
		if !found {
			continue
		}
		set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil {
			return false, fmt.Errorf("reading the capability bounding set: %w", err)
		}
		return set&(1<<capability) != 0, nil
	}
	if err := lines.Err(); err != nil {
		return false, err
	}
	return false, fmt.Errorf("reading the capability bounding set: /proc/self/status has no CapBnd")
}
