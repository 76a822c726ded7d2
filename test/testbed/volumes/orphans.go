// SPDX-License-Identifier: Apache-2.0

package volumes

import (
	"context"
	"fmt"
	"strings"

	"github.com/registry-cache/extension/test/testbed/volumes/loop"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// disksDir ends the path of the folder that nodes keep disks in, /var/lib/registry-cache-testbed/volumes. The kernel
// shows the path as the node saw it, or as this machine does, where the node's /var is a volume of the engine.
const disksDir = "/registry-cache-testbed/volumes/"

// CollectOrphans detaches the loop devices of this machine whose disk was deleted together with its node. It belongs
// after the removal of a cluster. Devices of clusters that exist are left alone, and so are those of others.
func CollectOrphans(ctx context.Context, progress *workspace.Progress) error {
	devices, err := loop.List()
	if err != nil {
		return fmt.Errorf("listing loop devices: %w", err)
	}
	for _, device := range devices {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !orphaned(device) {
			continue
		}
		if err := device.Detach(); err != nil {
			return err
		}
		progress.Printf("Detached %s, which a deleted node left", device.Path)
	}
	return nil
}

// orphaned tells whether the device has a deleted disk of a testbed behind it.
func orphaned(device loop.Device) bool {
	return device.Deleted && strings.Contains(device.FilePath, disksDir)
}
