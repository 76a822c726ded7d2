// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// limitOf runs limitMemory with a limit of the cgroup in bytes, and returns the limit of the Go runtime and the log. Not
// parallel: the limit belongs to the process.
func limitOf(t *testing.T, provider memlimit.Provider) (limit int64, log string) {
	t.Helper()
	before := debug.SetMemoryLimit(math.MaxInt64)
	defer debug.SetMemoryLimit(before)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var buffer bytes.Buffer
	limitMemory(ctx, slog.New(slog.NewTextHandler(&buffer, nil)), memlimit.WithProvider(provider), memlimit.WithRefreshInterval(ctx, 0))
	return debug.SetMemoryLimit(-1), buffer.String()
}

func unsetLimit(t *testing.T) {
	t.Helper()
	for _, name := range []string{"GOMEMLIMIT", "AUTOMEMLIMIT"} {
		t.Setenv(name, "") // restores the value at the end
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLimitMemory(t *testing.T) {
	unsetLimit(t)
	if got, log := limitOf(t, memlimit.Limit(1000<<20)); got != 900<<20 {
		t.Errorf("got %d bytes, want 90 %% of 1000 MiB: %s", got, log)
	}
	if got, log := limitOf(t, func() (uint64, error) { return 0, memlimit.ErrNoLimit }); got != math.MaxInt64 {
		t.Errorf("without a limit of the cgroup: got %d bytes: %s", got, log)
	}
	if got, log := limitOf(t, func() (uint64, error) { return 0, errors.New("no cgroup") }); got != math.MaxInt64 || !strings.Contains(log, "no cgroup") {
		t.Errorf("with an unreadable cgroup: got %d bytes: %s", got, log)
	}
	t.Setenv("GOMEMLIMIT", "1GiB")
	if got, _ := limitOf(t, memlimit.Limit(1000<<20)); got != math.MaxInt64 { // the runtime has read the variable at the start
		t.Errorf("with GOMEMLIMIT: the limit was changed to %d bytes", got)
	}
}

// The subcommand serve sets the limit, and respects GOMEMLIMIT. The limit belongs to a process, so this is another one.
func TestServeLimitsMemory(t *testing.T) {
	t.Parallel()
	const variable = "REGISTRY_CACHE_TEST_MEMORY"
	if config := os.Getenv(variable); config != "" {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		cmd := command()
		cmd.SetArgs([]string{"serve", "--config", config})
		if err := cmd.ExecuteContext(ctx); err != nil {
			t.Error(err)
		}
		return
	}
	config := filepath.Join(t.TempDir(), "config.yaml")
	content := "upstream: {host: docker.io, remoteURL: 'http://127.0.0.1:1'}\nlisten: {address: '127.0.0.1:0'}\n" +
		"debug: {address: '127.0.0.1:0'}\nstorage: {root: '" + t.TempDir() + "'}\n"
	if err := os.WriteFile(config, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestServeLimitsMemory$")
	cmd.Env = append(os.Environ(), variable+"="+config, "GOMEMLIMIT=123MiB")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), `"GOMEMLIMIT":"123MiB"`) {
		t.Errorf("%v: %s", err, out)
	}
}
