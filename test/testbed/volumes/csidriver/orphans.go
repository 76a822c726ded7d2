// SPDX-License-Identifier: Apache-2.0

package csidriver

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/registry-cache/extension/test/testbed/volumes/disk"
	"github.com/registry-cache/extension/test/testbed/volumes/loop"
)

// RemoveOrphans takes off the mounts below kubeletDir whose volume is gone, and removes the disks that belong to no
// volume: live has the names of those that do. It must run before volumes are made. A mount that is still in use
// stays, and its disk with it.
func RemoveOrphans(log *slog.Logger, disks *disk.Folder, kubeletDir string, live map[string]bool) error {
	names, err := disks.Names()
	if err != nil {
		return err
	}
	orphans := map[loop.File]bool{}
	for _, name := range names {
		if live[name] {
			continue
		}
		path, err := disks.Path(name)
		if err != nil {
			return err
		}
		file, err := loop.FileOf(path)
		if err != nil {
			return err
		}
		orphans[file] = true
	}
	mounts, err := loopMounts()
	if err != nil {
		return err
	}
	kubeletDir, err = filepath.EvalSymlinks(kubeletDir)
	if err != nil {
		return fmt.Errorf("finding the kubelet's folder: %w", err)
	}
	for _, mount := range mounts {
		if !strings.HasPrefix(mount.path, kubeletDir+string(os.PathSeparator)) || !orphans[mount.device.File] && !mount.device.Deleted {
			continue
		}
		if err := unmount(mount.path); err != nil {
			log.Error("An orphaned mount is still in use", "path", mount.path, "device", mount.device.Path, "error", err)
			continue
		}
		log.Info("Unmounted an orphan", "path", mount.path, "device", mount.device.Path)
	}
	for _, name := range names {
		if live[name] {
			continue
		}
		switch err := disks.Remove(name); {
		case errors.Is(err, disk.ErrInUse):
			log.Error("An orphaned disk is still in use", "volume", name, "error", err)
		case err != nil:
			return err
		default:
			log.Info("Removed an orphaned disk", "volume", name)
		}
	}
	return nil
}
