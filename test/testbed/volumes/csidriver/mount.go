// SPDX-License-Identifier: Apache-2.0

package csidriver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	mountutils "k8s.io/mount-utils"

	"github.com/registry-cache/extension/test/testbed/volumes/loop"
)

const (
	mountTable     = "/proc/self/mountinfo"
	loopDevicePath = "/dev/loop"

	// maxStacked bounds how many mounts on top of each other are taken off one path.
	maxStacked = 16
)

// loopMount is a mount of a file system on a loop device.
type loopMount struct {
	path   string
	device loop.Device
}

// loopMounts returns all mounts from loop devices in this mount namespace, in the order in which they were made.
func loopMounts() ([]loopMount, error) {
	entries, err := mountutils.ParseMountInfo(mountTable)
	if err != nil {
		return nil, fmt.Errorf("reading the mount table: %w", err)
	}
	var mounts []loopMount
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Source, loopDevicePath) {
			continue
		}
		device, err := loop.Inspect(entry.Source)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) {
			continue // unmounted since
		}
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, loopMount{path: entry.MountPoint, device: device})
	}
	return mounts, nil
}

// deviceAt returns the loop device that is mounted at path, or nil if none is.
func deviceAt(path string) (*loop.Device, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	mounts, err := loopMounts()
	if err != nil {
		return nil, err
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		if mounts[i].path == resolved {
			return &mounts[i].device, nil
		}
	}
	return nil, nil
}

// bind shows the file system at source at target, too.
func bind(source, target string, readOnly bool) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding %s to %s: %w", source, target, err)
	}
	if !readOnly {
		return nil
	}
	// A bind mount takes its flags from the source; only a remount changes them (mount(2)).
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return errors.Join(fmt.Errorf("making %s read-only: %w", target, err), unmount(target))
	}
	return nil
}

// unmount takes all mounts off path; that there are none, or no such path, is fine.
func unmount(path string) error {
	for range maxStacked {
		err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unmounting %s: %w", path, err)
		}
	}
	return fmt.Errorf("unmounting %s: more than %d mounts on top of each other", path, maxStacked)
}
