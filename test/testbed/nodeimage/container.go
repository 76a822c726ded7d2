// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/registry-cache/extension/test/testbed/host"
)

// containerName is the container that becomes an image. There is one at a time, so that what an interrupted run left is
// found.
const containerName = "registry-cache-testbed-node-build"

// container is a running container that becomes an image.
type container struct {
	engine *host.Engine
}

// derive makes the image ref of base by what change does in a container of it. The container has no network.
func (b *builder) derive(ctx context.Context, base, ref string, labels map[string]string, change func(container) error) (err error) {
	c := container{b.engine}
	if err := c.remove(ctx); err != nil {
		return fmt.Errorf("removing the container of an interrupted run: %w", err)
	}
	// Privileged, because containerd runs in it and nft checks its rules.
	_, err = b.engine.Run(ctx, nil, "run", "--detach", "--name", containerName, "--privileged", "--network", "none",
		"--entrypoint", "sleep", base, "infinity")
	// The container is removed even if ctx ended meanwhile: a cancelled run leaves nothing.
	defer func() { err = errors.Join(err, c.remove(context.WithoutCancel(ctx))) }()
	if err != nil {
		return err
	}
	if err := change(c); err != nil {
		return err
	}
	// The signal ends systemd, which takes SIGTERM for an order to start anew. The variable tells it that it is in a
	// container.
	args := []string{"commit"}
	for _, change := range []string{
		"ENV container=docker", "STOPSIGNAL SIGRTMIN+3", `ENTRYPOINT ["/usr/local/bin/entrypoint","/sbin/init"]`, "CMD []",
	} {
		args = append(args, "--change", change)
	}
	for name, value := range labels {
		args = append(args, "--change", "LABEL "+name+"="+value)
	}
	if _, err := b.engine.Run(ctx, nil, append(args, containerName, ref)...); err != nil {
		return fmt.Errorf("making the image: %w", err)
	}
	return nil
}

// run runs a program in the container and returns its standard output.
func (c container) run(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
	exec := []string{"exec"}
	if stdin != nil {
		exec = append(exec, "--interactive")
	}
	return c.engine.Run(ctx, stdin, append(append(exec, containerName), args...)...)
}

// script runs a script of the checkout in the container.
func (c container) script(ctx context.Context, name string, stdin io.Reader) error {
	content, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if _, err := c.run(ctx, stdin, "bash", "-c", string(content)); err != nil {
		return fmt.Errorf("running %s in the node image: %w", name, err)
	}
	return nil
}

// copy puts the files into the container. Folders and links to folders that are there stay what they are.
func (c container) copy(ctx context.Context, files []file) error {
	archive := stream(files)
	_, err := c.run(ctx, archive, "tar", "--extract", "--file=-", "--directory=/", "--no-same-owner", "--keep-directory-symlink")
	return errors.Join(err, archive.Close())
}

// remove removes the container if there is one.
func (c container) remove(ctx context.Context) error {
	found, err := c.engine.Run(ctx, nil, "ps", "--all", "--quiet", "--filter", "name=^"+containerName+"$")
	if err != nil || strings.TrimSpace(string(found)) == "" {
		return err
	}
	// Its process 1 ignores SIGTERM, for which removing would wait. Killing fails if it has ended already.
	_, killErr := c.engine.Run(ctx, nil, "kill", containerName)
	if _, err := c.engine.Run(ctx, nil, "rm", "--force", "--volumes", containerName); err != nil {
		return errors.Join(killErr, err)
	}
	return nil
}

func firstLine(out []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}

// labelled tells from an engine's answer whether an image has the label. An image without labels makes podman print
// nothing and docker "<no value>".
func labelled(answer string) bool {
	answer = strings.TrimSpace(answer)
	return answer != "" && answer != "<no value>"
}
