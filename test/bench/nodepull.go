// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/registry-cache/extension/test/testbed/containerdpull"
	"github.com/registry-cache/extension/test/testbed/pull"
)

// nodePull pulls an image that the node does not have, and returns the duration.
type nodePull struct {
	name    string // of the series
	version string // of containerd
	// ignoresDialTimeout is true if dial_timeout has no effect.
	ignoresDialTimeout bool
	prepare            func(ctx context.Context, s *kindShoot, reference string) error
	pull               func(ctx context.Context, s *kindShoot, reference string) (time.Duration, error)
}

// measured is the duration of a pull after prepare and event. event may be nil.
func (p nodePull) measured(ctx context.Context, s *kindShoot, reference string, event func() error) (time.Duration, error) {
	if err := p.prepare(ctx, s, reference); err != nil {
		return 0, err
	}
	if event != nil {
		if err := event(); err != nil {
			return 0, err
		}
	}
	return p.pull(ctx, s, reference)
}

// containerd17Pull pulls with the code of containerd 1.7. It builds a program and copies it to the nodes. The program
// does not store content.
func (b *bench) containerd17Pull(ctx context.Context, nodes ...*kindShoot) (nodePull, error) {
	built, err := containerdpull.Build(ctx, "containerd-v1", filepath.Join(b.dir, "programs"))
	if err != nil {
		return nodePull{}, err
	}
	const onNode = "/usr/local/bin/containerd-v1-pull"
	for _, node := range nodes {
		if err := copyProgram(string(built), filepath.Join(node.root, onNode)); err != nil {
			return nodePull{}, err
		}
	}
	version, err := moduleVersion(ctx, "containerd-pull", "github.com/containerd/containerd")
	if err != nil {
		return nodePull{}, err
	}
	return nodePull{
		name:               "stale/containerd-1.7",
		version:            "code of " + version + " on nodes",
		ignoresDialTimeout: true,
		prepare:            func(context.Context, *kindShoot, string) error { return nil },
		pull: func(ctx context.Context, s *kindShoot, reference string) (time.Duration, error) {
			out, err := s.node.Run(ctx, nil, onNode, "--discard", "--hosts", pull.HostsDir, "--platform", "linux/"+runtime.GOARCH, reference)
			if err != nil {
				return 0, err
			}
			var report containerdpull.Report
			if err := json.NewDecoder(bytes.NewReader(out)).Decode(&report); err != nil {
				return 0, fmt.Errorf("reading the report of %s: %w", onNode, err)
			}
			return time.Duration(report.Seconds * float64(time.Second)), report.Err()
		},
	}, nil
}

// daemonPull pulls with the containerd of the node.
func (s *kindShoot) daemonPull(ctx context.Context) (nodePull, error) {
	version, err := s.containerdVersion(ctx)
	return nodePull{
		name:    "stale/containerd-2",
		version: version,
		prepare: func(ctx context.Context, s *kindShoot, reference string) error {
			return pull.Remove(ctx, s.node, reference)
		},
		pull: func(ctx context.Context, s *kindShoot, reference string) (time.Duration, error) {
			return pull.Image(ctx, s.node, reference)
		},
	}, err
}

// containerdVersion returns the version of the containerd of the node.
func (s *kindShoot) containerdVersion(ctx context.Context) (string, error) {
	out, err := s.node.Run(ctx, nil, "containerd", "--version")
	if err != nil {
		return "", err
	}
	// "containerd <module> <version> <commit>"
	fields := strings.Fields(string(out))
	if len(fields) < 3 {
		return "", fmt.Errorf("containerd --version on %s: %q has no version", s.node.Name, out)
	}
	return fields[2] + " on nodes", nil
}

func copyProgram(from, to string) (err error) {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}
