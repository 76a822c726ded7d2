// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	kubeclient "sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/bench/result"
	"github.com/registry-cache/extension/test/testbed/pull"
)

const (
	// reactionTimeout is much longer than the reaction time of a node.
	reactionTimeout = 30 * time.Second
	// unitInterval is the time between two probes of the unit. Faults start at random times in it.
	unitInterval = 2 * time.Second
)

// nodeUnit measures the time until a node withdraws an unavailable cache and until it uses an available cache again, and
// the CPU time of the unit. The two kinds of fault run concurrently on different nodes, which are idle between the
// faults. A hanging cache hangs for both nodes, so the node with dropped packets has at times two unavailable caches.
func nodeUnit(ctx context.Context, b *bench) error {
	times, watched := 30, time.Minute
	if b.quick {
		times, watched = 5, 10*time.Second
	}
	return b.withShoot(ctx, ours, func(s *kindShoot) error {
		cost, err := s.unitCost(ctx, watched)
		if err != nil {
			return err
		}
		b.results.Add("unit/cost/caches=3", ours, "cpu-s/s", cost)

		hanging, err := s.hangingCache(ctx, "docker.io")
		if err != nil {
			return err
		}
		other, err := s.onWorker(ctx, 1)
		if err != nil {
			return err
		}
		faults := []struct {
			fault
			on        *kindShoot
			upstream  string
			withdrawn []float64
			back      []float64
		}{{fault: hanging, on: s, upstream: "docker.io"}, {fault: other.droppedPackets("quay.io"), on: other, upstream: "quay.io"}}
		g, ctx := errgroup.WithContext(ctx)
		for i := range faults {
			f := &faults[i]
			g.Go(func() error {
				for range times {
					w, r, err := f.on.react(ctx, f.upstream, f.fault)
					if err != nil {
						return fmt.Errorf("%s: %w", f.name, err)
					}
					f.withdrawn, f.back = append(f.withdrawn, w.Seconds()), append(f.back, r.Seconds())
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		for _, f := range faults {
			b.results.Add("unit/withdraw/"+f.name, ours, "p50-s", result.Percentile(f.withdrawn, 50))
			b.results.Add("unit/withdraw/"+f.name, ours, "p99-s", result.Percentile(f.withdrawn, 99))
			b.results.Add("unit/back/"+f.name, ours, "p50-s", result.Percentile(f.back, 50))
			b.results.Add("unit/back/"+f.name, ours, "p99-s", result.Percentile(f.back, 99))
		}
		return nil
	})
}

// fault makes a cache unavailable for the node. begin and end return after the change.
type fault struct {
	name       string
	begin, end func(ctx context.Context) error
}

// react returns the time from the start of the fault until the node has withdrawn the cache, and from its end until the
// node uses the cache.
func (s *kindShoot) react(ctx context.Context, upstreamHost string, f fault) (withdrawn, back time.Duration, err error) {
	if err := s.waitUntilUsed(ctx, upstreamHost, true); err != nil {
		return 0, 0, err
	}
	moment := time.NewTimer(rand.N(unitInterval))
	defer moment.Stop()
	select {
	case <-moment.C:
	case <-ctx.Done():
		return 0, 0, context.Cause(ctx)
	}
	if err := f.begin(ctx); err != nil {
		return 0, 0, errors.Join(err, f.end(context.WithoutCancel(ctx)))
	}
	began := time.Now()
	err = s.waitUntilUsed(ctx, upstreamHost, false)
	withdrawn = time.Since(began)
	if err := errors.Join(err, f.end(context.WithoutCancel(ctx))); err != nil {
		return 0, 0, err
	}
	ended := time.Now()
	err = s.waitUntilUsed(ctx, upstreamHost, true)
	return withdrawn, time.Since(ended), err
}

// waitUntilUsed reads the file from this machine, because a program on the node would use CPU time that is measured.
func (s *kindShoot) waitUntilUsed(ctx context.Context, upstreamHost string, want bool) error {
	file := s.hostsFile(upstreamHost)
	return poll(ctx, reactionTimeout, func() error {
		content, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if pull.UsesMirror(string(content)) != want {
			return fmt.Errorf("%s is %q, want a cache in it = %t", file, content, want)
		}
		return nil
	})
}

// hangingCache stops the process of a cache with SIGSTOP, like a machine without memory or with a defective disk: the
// kernel accepts connections, but the server sends no answers.
func (s *kindShoot) hangingCache(ctx context.Context, upstreamHost string) (fault, error) {
	pods := &corev1.PodList{}
	if err := s.kube.List(ctx, pods, kubeclient.InNamespace("kube-system"), kubeclient.MatchingLabels{"upstream-host": upstreamHost}); err != nil {
		return fault{}, err
	}
	if len(pods.Items) != 1 {
		return fault{}, fmt.Errorf("%s has %d pods, want 1", upstreamHost, len(pods.Items))
	}
	pid, err := processOfPod(string(pods.Items[0].UID), "registry-cache")
	if err != nil {
		return fault{}, err
	}
	signal := func(s syscall.Signal) func(context.Context) error {
		return func(context.Context) error { return syscall.Kill(pid, s) }
	}
	return fault{"hanging", signal(syscall.SIGSTOP), signal(syscall.SIGCONT)}, nil
}

// processOfPod returns the PID of the program of a pod on this machine. It compares the names of cgroups.
func processOfPod(uid, program string) (int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, dir := range dirs {
		// Processes can end during the search.
		command, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue
		}
		name, _, _ := bytes.Cut(command, []byte{0})
		if filepath.Base(string(name)) != program {
			continue
		}
		cgroups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		if err != nil {
			continue
		}
		// systemd replaces "-" of the UID by "_".
		if bytes.Contains(cgroups, []byte(uid)) || bytes.Contains(cgroups, []byte(strings.ReplaceAll(uid, "-", "_"))) {
			return strconv.Atoi(filepath.Base(dir))
		}
	}
	return 0, fmt.Errorf("no process %s of the pod %s on this machine", program, uid)
}

// droppedPackets drops all packets from the node to the cache, as for an unassigned address.
func (s *kindShoot) droppedPackets(upstreamHost string) fault {
	iptables := func(order string) func(context.Context) error {
		return func(ctx context.Context) error {
			// Not with the container engine, which would use CPU time that is measured.
			out, err := exec.CommandContext(ctx, "nsenter", "--target", strconv.Itoa(s.pid), "--mount", "--net",
				"iptables", "--wait", "--table", "raw", order, "OUTPUT", "--destination", s.caches[upstreamHost], "--jump", "DROP").CombinedOutput()
			if err != nil {
				return fmt.Errorf("iptables %s on %s: %w: %s", order, s.node.Name, err, bytes.TrimSpace(out))
			}
			return nil
		}
	}
	return fault{"dropped", iptables("--insert"), iptables("--delete")}
}

// unitCost returns the share of one processor that the unit uses, with all its child processes.
func (s *kindShoot) unitCost(ctx context.Context, watched time.Duration) (float64, error) {
	out, err := s.node.Run(ctx, nil, "systemctl", "show", "--property", "MainPID", "--value", unit)
	if err != nil {
		return 0, err
	}
	pid := strings.TrimSpace(string(out))
	before, err := s.treeSeconds(ctx, pid)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	end := time.NewTimer(watched)
	defer end.Stop()
	select {
	case <-end.C:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	after, err := s.treeSeconds(ctx, pid)
	return (after - before) / time.Since(began).Seconds(), err
}

// treeSeconds returns the CPU time of a process of the node and of its children that have ended.
func (s *kindShoot) treeSeconds(ctx context.Context, pid string) (float64, error) {
	stat, err := s.node.Run(ctx, nil, "cat", "/proc/"+pid+"/stat")
	if err != nil {
		return 0, err
	}
	return cpuSeconds(stat, "utime", "stime", "cutime", "cstime")
}

// cpuSeconds adds time fields of a file /proc/<pid>/stat.
func cpuSeconds(stat []byte, names ...string) (float64, error) {
	// The second field is the name in parentheses, which can contain spaces.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var seconds float64
	for i, name := range []string{"utime", "stime", "cutime", "cstime"} {
		if !slices.Contains(names, name) {
			continue
		}
		// utime is field 14 in proc_pid_stat(5), and fields starts at field 3.
		if len(fields) <= 11+i {
			return 0, fmt.Errorf("%q has no field %s", stat, name)
		}
		ticks, err := strconv.ParseFloat(fields[11+i], 64)
		if err != nil {
			return 0, err
		}
		seconds += ticks / clockTick
	}
	return seconds, nil
}
