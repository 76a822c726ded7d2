// SPDX-License-Identifier: Apache-2.0

// Command pause is the program of a pod's sandbox container. It keeps the pod's namespaces open, reaps orphaned
// processes as process 1, and exits on SIGINT or SIGTERM.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	// A child may have exited before signal.Notify was called.
	reap()
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		reap()
	}
}

// reap waits for all exited children: one SIGCHLD may stand for several of them.
func reap() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.ECHILD), err == nil && pid == 0:
			return
		case err != nil:
			fmt.Fprintln(os.Stderr, "pause: waiting for a child:", err)
			return
		}
	}
}
