// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/registry-cache/extension/test/testbed/volumes/loop"
)

// nodeVolumeMount is where kind mounts the volume of a node. The files behind the testbed's volumes are in it.
const nodeVolumeMount = "/var/"

// loopDevices returns the loop devices whose files are in the nodes' volumes. Usually a device is freed with its mount,
// that is with the node; this is for the others.
func (c *Cluster) loopDevices(ctx context.Context, volumes []string) ([]loop.Device, error) {
	devices, err := loop.List()
	if err != nil || len(devices) == 0 || len(volumes) == 0 {
		return nil, err
	}
	out, err := c.engine.Run(ctx, nil, append([]string{"volume", "inspect", "--format", "{{.Mountpoint}}"}, volumes...)...)
	if err != nil {
		return nil, fmt.Errorf("inspecting the volumes of cluster %q: %w", c.name, err)
	}
	var found []loop.Device
	for _, device := range devices {
		// The kernel tells the path as the node sees it.
		inNode, cut := strings.CutPrefix(device.FilePath, nodeVolumeMount)
		if !cut {
			continue
		}
		for mountpoint := range strings.FieldsSeq(string(out)) {
			if file, err := loop.FileOf(filepath.Join(mountpoint, inNode)); err == nil && file == device.File {
				found = append(found, device)
			}
		}
	}
	return found, nil
}

// detach frees those of the devices that still have the file they were found with.
func detach(devices []loop.Device) error {
	var errs []error
	for _, device := range devices {
		now, err := loop.Inspect(device.Path)
		if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT) || err == nil && now.File != device.File {
			continue // freed with its node, and perhaps taken by somebody else
		}
		errs = append(errs, err)
		if err == nil {
			errs = append(errs, device.Detach())
		}
	}
	return errors.Join(errs...)
}
