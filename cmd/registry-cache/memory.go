// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

const (
	// memoryRatio is the part of the container's memory limit that the Go runtime may use. The rest is for memory that the
	// runtime does not count: the program itself, and buffers of sockets.
	memoryRatio = 0.9
	// memoryInterval is the time between two readings of the limit: Kubernetes can resize a pod in place.
	memoryInterval = time.Minute
)

// limitMemory sets the soft memory limit of the Go runtime to memoryRatio of the memory limit of the cgroup (v2 memory.max, v1
// memory.limit_in_bytes), and updates it until ctx ends. The garbage collector runs more often near the limit, instead of
// the kernel ending the process. The environment variable GOMEMLIMIT takes precedence. Without a limit of the cgroup, or if
// it cannot be read, which is logged, the runtime has no limit.
func limitMemory(ctx context.Context, log *slog.Logger, more ...memlimit.Option) {
	options := []memlimit.Option{memlimit.WithRatio(memoryRatio), memlimit.WithLogger(log), memlimit.WithRefreshInterval(ctx, memoryInterval)}
	// An error has been logged. The server works without a limit.
	_, _ = memlimit.Set(append(options, more...)...)
}
