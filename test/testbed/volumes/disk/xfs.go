// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"time"
)

// Formatting takes well below a second, growing too; a machine with busy disks may need longer.
const commandTimeout = 2 * time.Minute

// format writes an empty XFS file system into the file at path. It is the file system of choice because it can grow
// while it is mounted without CAP_SYS_RESOURCE, which ext4 cannot.
func format(ctx context.Context, path string, size int64) error {
	args := []string{"-q", "-f"}
	if size < supportedSize {
		args = append(args, "--unsupported")
	}
	return run(ctx, "mkfs.xfs", append(args, path)...)
}

// GrowFileSystem makes the XFS file system that is mounted at mountPoint as large as its device. One that is already
// as large is left as it is.
func GrowFileSystem(ctx context.Context, mountPoint string) error {
	return run(ctx, "xfs_growfs", "-d", mountPoint)
}

func run(ctx context.Context, program string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("running %v: %w: %s", cmd.Args, err, bytes.TrimSpace(output.Bytes()))
	}
	return nil
}
