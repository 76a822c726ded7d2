// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Names of the container engines the testbed works with.
const (
	Docker = "docker"
	Podman = "podman"
)

const (
	// maxOutput bounds what Run keeps of a command's standard output, in bytes. The largest answers are inspections
	// and logs; whoever expects more uses Stream.
	maxOutput = 64 << 20
	// maxStderr bounds how much of the end of a command's standard error is kept for its error, in bytes.
	maxStderr = 16 << 10
	// maxShownArgs bounds the command line in an error, in bytes: scripts are passed as arguments, too.
	maxShownArgs = 300
	// pipeWait is how long a command that has ended, or was cancelled, may keep its pipes open through a child.
	pipeWait = 10 * time.Second
)

// Engine is the container engine of this host. It is safe for concurrent use.
type Engine struct {
	// Name is the program's name: Docker or Podman.
	Name string
	// extra are NAME=value pairs that the engine's program needs on this host.
	extra []string
}

// Env returns the complete environment ("NAME=value") for the engine's program and for programs that run it: this
// process's own with the settings for this host last. Proxy settings are left out, because nothing that the testbed
// runs in containers may leave this machine.
func (e *Engine) Env() []string {
	var env []string
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(pair, "=")
		if !isProxy(name) {
			env = append(env, pair)
		}
	}
	return append(env, e.extra...)
}

// Run runs the engine's program and returns its standard output, at most 64 MiB. stdin may be nil. The error carries
// the command line, shortened, and the end of its standard error; a program that ran and failed is an
// *exec.ExitError in its chain.
func (e *Engine) Run(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
	stdout := &boundedBuffer{limit: maxOutput}
	err := e.Stream(ctx, stdin, stdout, args...)
	return stdout.kept.Bytes(), err
}

// Stream is Run with the standard output written to stdout while the program runs.
func (e *Engine) Stream(ctx context.Context, stdin io.Reader, stdout io.Writer, args ...string) error {
	return run(ctx, e.Env(), stdin, stdout, e.Name, args...)
}

func run(ctx context.Context, env []string, stdin io.Reader, stdout io.Writer, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	stderr := &tailBuffer{limit: maxStderr}
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, stdin, stdout, stderr
	cmd.WaitDelay = pipeWait
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("%w (%w)", err, context.Cause(ctx))
	}
	line := shorten(strings.Join(append([]string{program}, args...), " "), maxShownArgs)
	if message := strings.TrimSpace(stderr.String()); message != "" {
		return fmt.Errorf("running %s: %w: %s", line, err, message)
	}
	return fmt.Errorf("running %s: %w", line, err)
}

func isProxy(name string) bool {
	switch strings.ToUpper(name) {
	case "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY":
		return true
	}
	return false
}

func shorten(s string, limit int) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + " ..."
}

// boundedBuffer refuses what exceeds limit, which ends the copying from the program and shows as its error. The
// buffer is not embedded: io.Copy would find its ReadFrom, which has no bound.
type boundedBuffer struct {
	kept  bytes.Buffer
	limit int
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	if b.kept.Len()+len(p) > b.limit {
		return 0, fmt.Errorf("more than %d bytes of output", b.limit)
	}
	return b.kept.Write(p)
}

// tailBuffer keeps the last limit bytes.
type tailBuffer struct {
	kept  []byte
	limit int
}

func (b *tailBuffer) Write(p []byte) (int, error) {
	b.kept = append(b.kept, p...)
	if over := len(b.kept) - b.limit; over > 0 {
		b.kept = append(b.kept[:0], b.kept[over:]...)
	}
	return len(p), nil
}

func (b *tailBuffer) String() string { return string(b.kept) }
