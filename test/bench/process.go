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
	// clockTick is USER_HZ of all Linux platforms of Go, the unit of times in /proc/<pid>/stat.
	clockTick = 100
)

// serverCPU is the processor of the engine, otherCPUs are those of all other processes, in the format of taskset. On a
// machine with one processor, all processes share it.
var serverCPU, otherCPUs = "0", fmt.Sprintf("%d-%d", min(1, runtime.NumCPU()-1), runtime.NumCPU()-1)

type processOptions struct {
	Program string
	Args    []string
	Env     []string // in addition to the environment of this process
	CPUs    string
	LogFile string // contains the output of the program
}

// process is a program that runs until stop.
type process struct {
	cmd    *exec.Cmd
	log    *os.File
	exited chan error
	ended  bool
}

// startProcess starts a program on the given processors. It stops at the latest when ctx ends.
func startProcess(ctx context.Context, o processOptions) (*process, error) {
	log, err := os.Create(o.LogFile)
	if err != nil {
		return nil, err
	}
	// taskset executes the program in its own process, so the PID is that of the program.
	p := &process{cmd: exec.CommandContext(ctx, "taskset", append([]string{"--cpu-list", o.CPUs, o.Program}, o.Args...)...), log: log, exited: make(chan error, 1)}
	p.cmd.Env = append(os.Environ(), o.Env...)
	// A pipe, as in a container: writes to the log must not count as writes to the volume.
	piped := struct{ io.Writer }{log}
	p.cmd.Stdout, p.cmd.Stderr = piped, piped
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	go func() { p.exited <- p.cmd.Wait() }()
	return p, nil
}

// stop terminates the program, and kills it after stopTimeout. It can be called more than once.
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
		// The stock registry does not handle the signal.
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Sys().(syscall.WaitStatus).Signaled() {
			return nil
		}
		return err
	case <-time.After(stopTimeout):
		return errors.Join(fmt.Errorf("%s had to be killed", p.cmd.Path), p.cmd.Process.Kill(), <-p.exited)
	}
}

// kill sends SIGKILL.
func (p *process) kill() error {
	p.ended = true
	defer p.log.Close()
	if err := p.cmd.Process.Kill(); err != nil {
		return err
	}
	<-p.exited //nolint:errcheck // the error only reports the signal
	return nil
}

// usage contains the resources that a process has used since its start.
type usage struct {
	cpuSeconds float64
	peakRSS    int64 // bytes
	written    int64 // bytes written to the disk
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

// resetPeak resets the peak of the resident set.
func (p *process) resetPeak() error {
	return os.WriteFile("/proc/"+strconv.Itoa(p.cmd.Process.Pid)+"/clear_refs", []byte("5"), 0)
}

// freePorts returns unused addresses of 127.0.0.1.
func freePorts(n int) ([]string, error) {
	var addresses []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		// All listeners stay open until the last one exists, so that the ports differ.
		defer l.Close()
		addresses = append(addresses, l.Addr().String())
	}
	return addresses, nil
}

// poll calls check until it returns nil. After the timeout, it returns the last error of check.
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
