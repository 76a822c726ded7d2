// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/registry-cache/extension/test/testbed/containerdpull"
)

// containerdLines returns the names of the clients that run the code of containerd in containerdpull.Names, in this order.
func containerdLines() []string { return []string{"containerd 1.7", "containerd 2.x"} }

// startSessions starts the programs of containerdpull. They find certificate authorities in hosts.toml.
func startSessions(ctx context.Context, p programs, dir string) ([]*containerdpull.Session, error) {
	var sessions []*containerdpull.Session
	for _, name := range containerdpull.Names() {
		session, err := containerdpull.Command(p[name].path).StartSession(ctx, environment(dir)...)
		if err != nil {
			return sessions, err
		}
		sessions = append(sessions, session)
	}
	return sessions, nil
}

// containerdSession pulls with the code of containerd 1.7 or 2.x, as containerd's CRI plugin does.
type containerdSession struct{ *containerdpull.Session }

func (c containerdSession) pull(ctx context.Context, from registry, ref reference, dir string) ([]string, error) {
	hosts, err := from.hostsDir(dir)
	if err != nil {
		return nil, err
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		return nil, errors.New("a pull needs a deadline")
	}
	result, err := c.Pull(containerdpull.Request{
		Reference: imageHost + "/" + ref.path, Hosts: hosts, Platform: "linux/" + architecture,
		Username: from.username, Password: from.password, Timeout: time.Until(deadline),
	})
	if err != nil {
		return nil, err
	}
	if result.Error != "" {
		return nil, errors.New(result.Error)
	}
	// The program has verified the digests of the blobs, which the manifest contains.
	return []string{result.Digest, result.Manifest, fmt.Sprintf("%d blobs", result.Blobs), fmt.Sprintf("%d bytes", result.Bytes)}, nil
}

// containerd16 pulls with the commands of containerd 1.6, which Debian 12 contains. One daemon stores the content of all
// pulls, each in its own namespace.
type containerd16 struct {
	ctr, socket string
	server      *server
	pulls       atomic.Int64
}

// startContainerd16 starts the daemon. Its files are in dir.
func startContainerd16(ctx context.Context, p programs, dir string) (*containerd16, error) {
	c := &containerd16{ctr: p["ctr"].path, socket: filepath.Join(dir, "containerd.sock")}
	// With the default policy "shared", content of one namespace is not pulled again in another one.
	config := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = %q
[plugins."io.containerd.metadata.v1.bolt"]
  content_sharing_policy = "isolated"
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), c.socket)
	if err := writeFiles(dir, map[string]string{"containerd.toml": config}); err != nil {
		return nil, err
	}
	ready := func(ctx context.Context) error {
		_, err := c.run(ctx, dir, "default", "version")
		return err
	}
	var err error
	c.server, err = startServer(ctx, dir, "containerd", ready, p["containerd"].path, "--config", filepath.Join(dir, "containerd.toml"))
	return c, err
}

func (c *containerd16) run(ctx context.Context, dir, namespace string, args ...string) ([]byte, error) {
	return run(ctx, environment(dir), c.ctr, append([]string{"--address", c.socket, "--namespace", namespace}, args...)...)
}

func (c *containerd16) pull(ctx context.Context, from registry, ref reference, dir string) ([]string, error) {
	hosts, err := from.hostsDir(dir)
	if err != nil {
		return nil, err
	}
	namespace := fmt.Sprintf("pull-%d", c.pulls.Add(1))
	args := []string{"content", "fetch", "--hosts-dir", hosts, "--platform", "linux/" + architecture}
	if from.username != "" {
		args = append(args, "--user", from.username+":"+from.password)
	}
	if _, err := c.run(ctx, dir, namespace, append(args, imageHost+"/"+ref.path)...); err != nil {
		return nil, err
	}
	output, err := c.run(ctx, dir, namespace, "content", "ls", "--quiet")
	if err != nil {
		return nil, err
	}
	digests := strings.Fields(string(output))
	slices.Sort(digests)
	return digests, nil
}
