package kindcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// nodeVolumeMount is where kind mounts the volume of a node. The files behind the testbed's volumes are in it.
const nodeVolumeMount = "/var/"

// loopDevice is a loop device of the host and the file it had when it was found.
type loopDevice struct {
	path          string
	device, inode uint64
}

// loopDevices returns the loop devices whose files are in the nodes' volumes. Usually a device is freed with its mount,
// that is with the node; this is for the others.
func (c *Cluster) loopDevices(ctx context.Context, volumes []string) ([]loopDevice, error) {
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil || len(backing) == 0 || len(volumes) == 0 {
		return nil, err
	}
	out, err := c.engine.Run(ctx, nil, append([]string{"volume", "inspect", "--format", "{{.Mountpoint}}"}, volumes...)...)
	if err != nil {
		return nil, fmt.Errorf("inspecting the volumes of cluster %q: %w", c.name, err)
	}
	mountpoints := strings.Fields(string(out))

	var found []loopDevice
	for _, attribute := range backing {
		content, err := os.ReadFile(attribute)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) {
			continue // freed meanwhile
		}
		if err != nil {
			return nil, err
		}
		// The kernel tells the path as the node sees it.
		inNode, cut := strings.CutPrefix(strings.TrimSpace(string(content)), nodeVolumeMount)
		if !cut {
			continue
		}
		block := filepath.Base(filepath.Dir(filepath.Dir(attribute)))
		loop, err := inspectLoop("/dev/" + block)
		if err != nil {
			return nil, err
		}
		for _, mountpoint := range mountpoints {
			if loop.inode != 0 && loop.isFile(filepath.Join(mountpoint, inNode)) {
				found = append(found, loop)
			}
		}
	}
	return found, nil
}

// isFile tells whether the device's file is the one with the name.
func (l loopDevice) isFile(name string) bool {
	var stat unix.Stat_t
	return unix.Stat(name, &stat) == nil && stat.Dev == l.device && stat.Ino == l.inode
}

// inspectLoop returns the loop device with the file it has now; zero if it has none.
func inspectLoop(path string) (loopDevice, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return loopDevice{}, fmt.Errorf("opening %s: %w", path, err)
	}
	defer unix.Close(fd)
	info, err := unix.IoctlLoopGetStatus64(fd)
	if errors.Is(err, unix.ENXIO) {
		return loopDevice{path: path}, nil
	}
	if err != nil {
		return loopDevice{}, fmt.Errorf("inspecting %s: %w", path, err)
	}
	return loopDevice{path: path, device: info.Device, inode: info.Inode}, nil
}

// detach frees those of the loop devices that still have the file they were found with.
func detach(loops []loopDevice) error {
	var errs []error
	for _, loop := range loops {
		now, err := inspectLoop(loop.path)
		if err != nil || now != loop {
			errs = append(errs, err)
			continue
		}
		fd, err := unix.Open(loop.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			errs = append(errs, fmt.Errorf("opening %s: %w", loop.path, err))
			continue
		}
		if err := unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
			errs = append(errs, fmt.Errorf("freeing %s: %w", loop.path, err))
		}
		unix.Close(fd)
	}
	return errors.Join(errs...)
}
