// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/registry-cache/extension/test/bench/result"
)

func describeHost(ctx context.Context) (result.Host, error) {
	h := result.Host{GoVersion: runtime.Version(), CPUs: runtime.NumCPU()}
	commit, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return h, fmt.Errorf("reading the commit: %w", err)
	}
	h.Commit = strings.TrimSpace(string(commit))
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return h, err
	}
	h.Kernel = strings.TrimSpace(string(kernel))
	if h.CPU, err = field("/proc/cpuinfo", "model name", ":"); err != nil {
		return h, err
	}
	if h.System, err = field("/etc/os-release", "PRETTY_NAME", "="); err != nil {
		return h, err
	}
	if h.MemoryKiB, err = procField("/proc/meminfo", "MemTotal"); err != nil {
		return h, err
	}
	h.Distribution, err = moduleVersion(ctx, "distribution", "github.com/distribution/distribution/v3")
	return h, err
}

// field returns the value of the line "name<separator>value" of a file, without quotes; empty without such a line.
func field(path, name, separator string) (string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(content)) {
		if key, value, ok := strings.Cut(line, separator); ok && strings.TrimSpace(key) == name {
			return strings.Trim(strings.TrimSpace(value), `"`), nil
		}
	}
	return "", nil
}

// moduleVersion returns the version of a module in the go.mod of a folder below hack.
func moduleVersion(ctx context.Context, folder, module string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", module)
	cmd.Dir = filepath.Join("hack", folder)
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("reading the version of %s in %s: %w", module, cmd.Dir, err)
	}
	return strings.TrimSpace(string(out)), nil
}
