// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/registry-cache/extension/test/testbed/poll"
)

const (
	// startTimeout is the time in which a server must accept its first request.
	startTimeout = 30 * time.Second
	// stopTimeout is the time in which a server must end after SIGTERM.
	stopTimeout = 15 * time.Second
	// maxMessage is the number of bytes of a program's output in an error.
	maxMessage = 2 << 10
)

// server is a program that runs until stop.
type server struct {
	cmd     *exec.Cmd
	logFile string
	ended   chan struct{} // is closed after the end of the program
	err     error         // reason of the end; valid after ended
}

// startServer starts a program and waits until ready returns nil. The program's output is in dir/<name>.log. The caller stops
// the server.
func startServer(ctx context.Context, dir, name string, ready func(context.Context) error, program string, args ...string) (*server, error) {
	s := &server{logFile: filepath.Join(dir, name+".log"), ended: make(chan struct{})}
	log, err := os.Create(s.logFile)
	if err != nil {
		return nil, err
	}
	defer log.Close()                      // the program has its own descriptor
	s.cmd = exec.Command(program, args...) // without ctx, because stop ends it in order
	s.cmd.Dir = dir
	s.cmd.Env = environment(dir)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.ended)
	}()
	err = poll.Until(ctx, 20*time.Millisecond, startTimeout, func(ctx context.Context) error {
		select {
		case <-s.ended:
			return poll.Stop(fmt.Errorf("it ended: %w", s.err))
		default:
			return ready(ctx)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("waiting for %s: %w\n%s", name, errors.Join(err, s.stop()), s.log())
	}
	return s, nil
}

// stop ends the program with SIGTERM, or with SIGKILL after stopTimeout, and waits for its end. It can be called more than once.
func (s *server) stop() error {
	select {
	case <-s.ended:
		return nil
	default:
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.ended:
		return nil // some servers do not handle the signal, so the exit code has no meaning
	case <-time.After(stopTimeout):
	}
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-s.ended
	return nil
}

// log returns the last lines of the program's output.
func (s *server) log() string {
	content, err := os.ReadFile(s.logFile)
	if err != nil {
		return err.Error()
	}
	return lastBytes(content)
}

// run executes a program that ends by itself and returns its standard output. The error contains the last lines of the
// output.
func run(ctx context.Context, env []string, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = env
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		}
		return nil, fmt.Errorf("%s: %w\n%s", filepath.Base(program), err, lastBytes(append(stdout.Bytes(), stderr.Bytes()...)))
	}
	return stdout.Bytes(), nil
}

// environment returns the environment of all programs of the suite: nothing of the user's but PATH, so that no proxy, login or
// configuration of the user is in effect. Additional variables have the form "name=value".
func environment(dir string, additional ...string) []string {
	return append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, "XDG_RUNTIME_DIR=" + dir, "LC_ALL=C",
		"OTEL_TRACES_EXPORTER=none", // distribution 3
	}, additional...)
}

// freeAddress returns an address of 127.0.0.1 on which no program listens.
func freeAddress(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// writeFiles writes files of a directory, by name.
func writeFiles(dir string, files map[string]string) error {
	for name, content := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func lastBytes(output []byte) string {
	return strings.TrimSpace(string(output[max(0, len(output)-maxMessage):]))
}
