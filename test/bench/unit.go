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
	// reactionTimeout is far more than a node may take to notice something.
	reactionTimeout = 30 * time.Second
	// unitInterval is the time between two probes of the unit: faults begin at any moment in it.
	unitInterval = 2 * time.Second
)

// nodeUnit measures how soon a node stops to use a cache that is gone, and uses it again, and what the unit that does this
// costs. Both faults are on nodes of their own at once, which are idle between them: what hangs for one hangs for the other
// one, too, so that the node that packets vanish on has, at times, two caches that are gone.
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

// fault takes a cache away from the node. Both functions return when it has happened.
type fault struct {
	name       string
	begin, end func(ctx context.Context) error
}

// react returns the time from the beginning of the fault until the node does not use the cache, and from its end until it
// does.
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

// waitUntilUsed watches the file itself: a program on the node would take part of what is measured.
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

// hangingCache stops the process of a cache, as a machine without memory or a broken disk does: connections are accepted
// and nothing is answered.
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

// processOfPod finds the program of a pod among the processes of this machine, by the name of its cgroup.
func processOfPod(uid, program string) (int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, dir := range dirs {
		// Processes end while we look.
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
		// systemd has "_" where the UID has "-".
		if bytes.Contains(cgroups, []byte(uid)) || bytes.Contains(cgroups, []byte(strings.ReplaceAll(uid, "-", "_"))) {
			return strconv.Atoi(filepath.Base(dir))
		}
	}
	return 0, fmt.Errorf("no process %s of the pod %s on this machine", program, uid)
}

// droppedPackets lets what the node sends to the cache vanish, as for an address that nobody has.
func (s *kindShoot) droppedPackets(upstreamHost string) fault {
	iptables := func(order string) func(context.Context) error {
		return func(ctx context.Context) error {
			// Not by the container engine, which takes a good part of what is measured.
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

// unitCost is the share of one processor that the unit takes, with all that it starts.
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

// treeSeconds is what a process of the node has used, with its children that have ended.
func (s *kindShoot) treeSeconds(ctx context.Context, pid string) (float64, error) {
	stat, err := s.node.Run(ctx, nil, "cat", "/proc/"+pid+"/stat")
	if err != nil {
		return 0, err
	}
	return cpuSeconds(stat, "utime", "stime", "cutime", "cstime")
}

// cpuSeconds adds fields of a file /proc/<pid>/stat that are times.
func cpuSeconds(stat []byte, names ...string) (float64, error) {
	// The second field is the name in parentheses, which may have spaces.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var seconds float64
	for i, name := range []string{"utime", "stime", "cutime", "cstime"} {
		if !slices.Contains(names, name) {
			continue
		}
		// utime is field 14 of proc_pid_stat(5), and fields begins with field 3.
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
