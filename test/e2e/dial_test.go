// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/registry-cache/extension/test/testbed/host"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
)

// dialTimeout bounds a connection's establishment; on one machine anything above a second is a black hole.
const dialTimeout = 5 * time.Second

// nodeDialer opens connections from inside of a node's network, where ClusterIPs work as they do for containerd.
type nodeDialer struct {
	engine *host.Engine
	node   kindcluster.Node
}

// DialContext has the form of http.Transport.DialContext. The address must be an IP and a port: a name would be
// resolved by a thread in the network of the host.
func (d nodeDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	pid, err := d.engine.Run(ctx, nil, "inspect", "--format", "{{.State.Pid}}", d.node.Name)
	if err != nil {
		return nil, err
	}
	namespace, err := os.Open(fmt.Sprintf("/proc/%s/ns/net", strings.TrimSpace(string(pid))))
	if err != nil {
		return nil, fmt.Errorf("opening the network of %s: %w", d.node.Name, err)
	}
	defer namespace.Close()

	type result struct {
		conn net.Conn
		err  error
	}
	dialled := make(chan result, 1)
	go func() {
		// The goroutine ends with its thread locked, so that the runtime ends the thread: no other code ever runs in
		// the network of the node. A socket stays where it was made.
		runtime.LockOSThread()
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			dialled <- result{err: fmt.Errorf("entering the network of %s: %w", d.node.Name, err)}
			return
		}
		conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, address)
		dialled <- result{conn, err}
	}()
	r := <-dialled
	return r.conn, r.err
}
