// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	startTimeout = 30 * time.Second
	stopTimeout  = 30 * time.Second
	pollInterval = 5 * time.Millisecond
	// clockTick is USER_HZ of all Linux platforms that Go has, the unit of times in /proc/<pid>/stat.
	clockTick = 100
)

// serverCPU is where an engine runs, otherCPUs where everything else does, as taskset takes them. On a machine with
// one processor all share it.
var serverCPU, otherCPUs = "0", fmt.Sprintf("%d-%d", min(1, runtime.NumCPU()-1), runtime.NumCPU()-1)

type processOptions struct {
	Program string
	Args    []string
	Env     []string // in addition
	CPUs    string
	LogFile string // gets what it prints
}

// process is a program that runs until stop.
type process struct {
	cmd    *exec.Cmd
	log    *os.File
	exited chan error
	ended  bool
}

// startProcess starts a program on some processors. It ends with ctx at the latest.
func startProcess(ctx context.Context, o processOptions) (*process, error) {
	log, err := os.Create(o.LogFile)
	if err != nil {
		return nil, err
	}
	// taskset makes itself the program, so the identity of the process is that of the program.
	p := &process{cmd: exec.CommandContext(ctx, "taskset", append([]string{"--cpu-list", o.CPUs, o.Program}, o.Args...)...), log: log, exited: make(chan error, 1)}
	p.cmd.Env = append(os.Environ(), o.Env...)
	// Through a pipe, as in a container: the log must not count as what the program writes to the volume.
	piped := struct{ io.Writer }{log}
	p.cmd.Stdout, p.cmd.Stderr = piped, piped
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	go func() { p.exited <- p.cmd.Wait() }()
	return p, nil
}

// stop ends the program in order, or by force after stopTimeout. It may be called more than once.
func (p *process) stop() error {
	if p.ended {
		return nil
	}
	p.ended = true
	defer p.log.Close()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case err := <-p.exited:
		// The stock registry ends by the signal itself.
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Sys().(syscall.WaitStatus).Signaled() {
			return nil
		}
		return err
	case <-time.After(stopTimeout):
		return errors.Join(fmt.Errorf("%s had to be killed", p.cmd.Path), p.cmd.Process.Kill(), <-p.exited)
	}
}

// kill ends the program in the middle of what it does.
func (p *process) kill() error {
	p.ended = true
	defer p.log.Close()
	if err := p.cmd.Process.Kill(); err != nil {
		return err
	}
	<-p.exited // by the signal
	return nil
}

// usage is what a process has used so far.
type usage struct {
	cpuSeconds float64
	peakRSS    int64 // bytes
	written    int64 // bytes that it made the volume write
}

func (p *process) usage() (usage, error) {
	var u usage
	dir := "/proc/" + strconv.Itoa(p.cmd.Process.Pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return u, err
	}
	if u.cpuSeconds, err = cpuSeconds(stat, "utime", "stime"); err != nil {
		return u, err
	}
	kib, err := procField(dir+"/status", "VmHWM")
	if err != nil {
		return u, err
	}
	u.peakRSS = kib << 10
	u.written, err = procField(dir+"/io", "write_bytes")
	return u, err
}

// procField returns the number in the line "name: number" of a file below /proc.
func procField(path, name string) (int64, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(content)) {
		if key, value, ok := strings.Cut(line, ":"); ok && key == name {
			number, _, _ := strings.Cut(strings.TrimSpace(value), " ")
			return strconv.ParseInt(number, 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no line %s", path, name)
}

// resetPeak lets the peak of the resident set begin anew.
func (p *process) resetPeak() error {
	return os.WriteFile("/proc/"+strconv.Itoa(p.cmd.Process.Pid)+"/clear_refs", []byte("5"), 0)
}

// freePorts returns addresses of 127.0.0.1 that nobody listens on.
func freePorts(n int) ([]string, error) {
	var addresses []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		// All stay open until the last one is found, so that they differ.
		defer l.Close()
		addresses = append(addresses, l.Addr().String())
	}
	return addresses, nil
}

// poll calls check until it returns nil, at most for the timeout, and then returns its last error.
func poll(ctx context.Context, timeout time.Duration, check func() error) error {
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return fmt.Errorf("after %s: %w", timeout, err)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
