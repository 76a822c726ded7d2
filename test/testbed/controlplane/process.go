// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopTimeout is how long a process may take to end after SIGTERM.
const stopTimeout = 20 * time.Second

// Process is a program that runs until Stop. It is safe for concurrent use.
type Process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of the process; written before done is closed

	stopOnce sync.Once
	stopping atomic.Bool
}

// StartProcess runs a program, with what it prints in the file dir/<base of path>.log. It ends with this process at the
// latest. Environment is added to that of this process, which it wins against.
func StartProcess(dir, path string, environment []string, args ...string) (*Process, error) {
	name := filepath.Base(path)
	//nolint:noctx // the process runs until Stop
	p := &Process{name: name, log: filepath.Join(dir, name+".log"), cmd: exec.Command(path, args...), done: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, out, out
	p.cmd.Env = append(os.Environ(), environment...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", path, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Log returns what the process has printed so far.
func (p *Process) Log() ([]byte, error) { return os.ReadFile(p.log) }

// Err returns why the process has ended by itself, and nil while it runs and after Stop.
func (p *Process) Err() error {
	if p.stopping.Load() {
		return nil
	}
	select {
	case <-p.done:
		log, err := p.Log()
		//nolint:errorlint // %w cannot format nil, the error of a process that has ended with exit status 0
		return errors.Join(fmt.Errorf("%s has ended: %v\n%s", p.name, p.err, lastLines(log, 20)), err)
	default:
		return nil
	}
}

// Stop ends the process and waits for that. A process that has ended by itself before is an error of Err, not of Stop.
func (p *Process) Stop() error {
	var err error
	p.stopOnce.Do(func() {
		select {
		case <-p.done:
			return
		default:
		}
		p.stopping.Store(true)
		if err = p.cmd.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			err = fmt.Errorf("stopping %s: %w", p.name, err)
			return
		}
		err = nil
		timer := time.NewTimer(stopTimeout)
		defer timer.Stop()
		select {
		case <-p.done:
		case <-timer.C:
			err = errors.Join(fmt.Errorf("%s did not end within %s after SIGTERM", p.name, stopTimeout), p.cmd.Process.Kill())
			<-p.done
		}
	})
	return err
}

// FreePorts returns TCP ports of the loopback interface that nobody listens on at this moment.
func FreePorts(ctx context.Context, n int) ([]int, error) {
	var ports []int
	var config net.ListenConfig
	for range n {
		listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		// All are open until all are known: the same port is not given twice.
		defer listener.Close()
		ports = append(ports, listener.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

func lastLines(text []byte, n int) []byte {
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-n):], []byte("\n"))
}
