// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/registry-cache/extension/test/testbed/workspace"
)

// packageManager installs Debian packages with apt-get.
type packageManager struct {
	// run runs a program and returns its standard output.
	run func(ctx context.Context, program string, args ...string) ([]byte, error)
}

// InstallPackages installs those of the Debian packages that are missing, and reports that as a step. The error for a host
// that is not Debian, or whose package sources lack a package, contains their names.
func InstallPackages(ctx context.Context, p *workspace.Progress, packages ...string) error {
	return packageManager{run: runProgram}.install(ctx, p, packages...)
}

// install installs the packages that are missing, without recommended packages. It reports them as a step. If one of them
// cannot be installed, it installs none and returns an error with the names; it may have updated the package index.
func (m packageManager) install(ctx context.Context, p *workspace.Progress, packages ...string) error {
	missing, err := m.missing(ctx, packages)
	if err != nil || len(missing) == 0 {
		return err
	}
	names := strings.Join(missing, " ")
	return p.Step("installing Debian packages that this host lacks: "+names, func() error {
		// A source of another vendor that does not answer makes the update fail, although Debian's packages may be
		// there. What counts is whether they can be installed.
		_, updateErr := m.run(ctx, "apt-get", "update", "-qq")
		arguments := func(first ...string) []string {
			return append(append(first, "install", "-qq", "-y", "--no-install-recommends"), missing...)
		}
		if _, err := m.run(ctx, "apt-get", arguments("--simulate")...); err != nil {
			return errors.Join(fmt.Errorf("this host needs the Debian packages %s, and its package sources do not have them: %w", names, err), updateErr)
		}
		if _, err := m.run(ctx, "apt-get", arguments()...); err != nil {
			return errors.Join(err, updateErr)
		}
		return nil
	})
}

// missing returns those of the packages that are not installed, sorted.
func (m packageManager) missing(ctx context.Context, packages []string) ([]string, error) {
	if len(packages) == 0 {
		return nil, nil
	}
	// dpkg-query fails if it does not know one of the names, and still prints the others.
	out, err := m.run(ctx, "dpkg-query", append([]string{"--show", "--showformat=${Package} ${db:Status-Status}\n"}, packages...)...)
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("this host needs %s, and it is no Debian to install packages on: install them with its package manager", strings.Join(packages, ", "))
	}
	if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
		return nil, fmt.Errorf("asking which Debian packages are installed: %w", err)
	}
	installed := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		if name, status, _ := strings.Cut(strings.TrimSpace(line), " "); status == "installed" {
			installed[name] = true
		}
	}
	missing := slices.DeleteFunc(slices.Clone(packages), func(name string) bool { return installed[name] })
	slices.Sort(missing)
	return slices.Compact(missing), nil
}

func runProgram(ctx context.Context, program string, args ...string) ([]byte, error) {
	stdout := &boundedBuffer{limit: maxOutput}
	err := run(ctx, append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C"), nil, stdout, program, args...)
	return stdout.kept.Bytes(), err
}
