// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/poll"
)

const (
	mirrorInterval = 250 * time.Millisecond
	// mirrorTimeout has room for the volume and the pod of a new cache on a slow machine: after a failed mount the kubelet
	// waits up to 2 min before it repeats it.
	mirrorTimeout = 5 * time.Minute
	// noMirrorTimeout is much more than the 5 s within which the unit on the nodes withdraws a cache.
	noMirrorTimeout = 2 * time.Minute
	// hostsTimeout limits one command in the node: on a slow disk a container engine can block for minutes.
	hostsTimeout = 20 * time.Second
)

// Hosts returns the node's hosts.toml of an upstream, "" if it has none.
func Hosts(ctx context.Context, node kindcluster.Node, upstreamHost string) (string, error) {
	// "find" says nothing about a file that is not there, and fails where the node does not answer.
	out, err := node.Run(ctx, nil, "find", HostsDir, "-path", HostsDir+"/"+upstreamHost+"/hosts.toml", "-exec", "cat", "{}", ";")
	if err != nil {
		return "", fmt.Errorf("reading hosts.toml of %s on %s: %w", upstreamHost, node.Name, err)
	}
	return string(out), nil
}

// UsesMirror tells whether a hosts.toml names a host beside the upstream itself.
func UsesMirror(hosts string) bool { return strings.Contains(hosts, "[host.") }

// WaitForMirror waits until the node's containerd is configured to use the cache of the upstream, at most five minutes.
func WaitForMirror(ctx context.Context, node kindcluster.Node, upstreamHost string) error {
	return waitForMirror(ctx, node, upstreamHost, true, mirrorTimeout)
}

// WaitForNoMirror waits until the node's containerd is configured to go to the upstream itself, at most two minutes.
func WaitForNoMirror(ctx context.Context, node kindcluster.Node, upstreamHost string) error {
	return waitForMirror(ctx, node, upstreamHost, false, noMirrorTimeout)
}

func waitForMirror(ctx context.Context, node kindcluster.Node, upstreamHost string, want bool, timeout time.Duration) error {
	return poll.Until(ctx, mirrorInterval, timeout, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, hostsTimeout)
		defer cancel()
		hosts, err := Hosts(ctx, node, upstreamHost)
		if err != nil {
			return err
		}
		if UsesMirror(hosts) != want {
			return fmt.Errorf("hosts.toml of %s on %s is %q, want a mirror in it = %t", upstreamHost, node.Name, hosts, want)
		}
		return nil
	})
}
