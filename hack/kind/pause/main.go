// SPDX-License-Identifier: Apache-2.0

// Command pause is what the sandbox of a pod runs: it holds the pod's namespaces, reaps the processes that are left to
// it as process 1, and ends on SIGINT or SIGTERM.
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
	// A child may have ended before the signal was asked for.
	reap()
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		reap()
	}
}

// reap collects all children that have ended: one signal may stand for several of them.
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
