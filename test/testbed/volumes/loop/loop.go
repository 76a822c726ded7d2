// SPDX-License-Identifier: Apache-2.0

// Package loop attaches files to the loop devices of the kernel.
//
// Loop devices belong to the machine, not to a container: every kind node and every cluster on it shares them. What
// this package does to a device is therefore checked against the file behind it, never against the device's number.
package loop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	sysBlock = "/sys/block"
	control  = "/dev/loop-control"

	// major is the block device number of the loop driver, and controlMajor, controlMinor the character device of
	// its control file (Linux Documentation/admin-guide/devices.txt).
	major        = 7
	controlMajor = 10
	controlMinor = 237

	// attachTries bounds how often Attach picks a device that somebody else takes first.
	attachTries = 64
	// maxNumber bounds the device numbers for which a device file can be made (20 bits of minor number).
	maxNumber = 1<<20 - 1
)

// File identifies a regular file by the device number and the inode of its file system, as stat(2) tells them. It
// stays valid when the file is renamed, or seen under another path in another mount namespace.
type File struct {
	Device, Inode uint64
}

// FileOf returns the identity of the file at path.
func FileOf(path string) (File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return File{}, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return File{}, fmt.Errorf("reading the inode of %s: unexpected type %T", path, info.Sys())
	}
	return File{Device: stat.Dev, Inode: stat.Ino}, nil
}

// Device is a loop device with a file behind it.
type Device struct {
	// Path is the device file, "/dev/loop<N>".
	Path string
	// File is the file behind the device.
	File File
	// FilePath is the path of that file as the kernel shows it in this mount namespace, without the suffix that
	// marks a deleted file.
	FilePath string
	// Deleted tells that the file has no name any more: its bytes exist only as long as the device.
	Deleted bool
}

// Attachment keeps a device attached that nothing is mounted from yet.
type Attachment struct {
	// Path is the device file, "/dev/loop<N>".
	Path string
	file *os.File
}

// Close releases the device. The kernel detaches it from its file as soon as nothing uses it, so it stays attached
// as long as a file system is mounted from it, and is free again after the unmount, also if this process has ended.
func (a *Attachment) Close() error { return a.file.Close() }

// Attach attaches the file at path, for reading and writing, to a free loop device, and makes that device and its
// device file where they are missing. The caller closes the attachment once it has mounted from it. It needs
// CAP_SYS_ADMIN and, for device files, CAP_MKNOD, and Linux 5.8 (LOOP_CONFIGURE).
func Attach(path string) (*Attachment, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if err := ensureDeviceFile(control, unix.S_IFCHR, unix.Mkdev(controlMajor, controlMinor)); err != nil {
		return nil, err
	}
	controller, err := os.OpenFile(control, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer controller.Close()

	for range attachTries {
		number, err := unix.IoctlRetInt(int(controller.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("asking for a free loop device: %w", err)
		}
		device, err := openDevice(fmt.Sprintf("loop%d", number), os.O_RDWR)
		if errors.Is(err, unix.ENXIO) {
			continue // removed since
		}
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(file.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		// The name is only shown by tools, and cut to its field; identity is the inode.
		copy(config.Info.File_name[:len(config.Info.File_name)-1], path)
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return &Attachment{Path: device.Name(), file: device}, nil
		}
		if closeErr := device.Close(); closeErr != nil || !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("attaching %s to %s: %w", path, device.Name(), errors.Join(err, closeErr))
		}
	}
	return nil, fmt.Errorf("attaching %s: %d loop devices in a row were taken by others", path, attachTries)
}

// List returns the loop devices that have a file behind them, of the whole machine.
func List() ([]Device, error) {
	names, err := filepath.Glob(filepath.Join(sysBlock, "loop*", "loop", "backing_file"))
	if err != nil {
		return nil, err
	}
	var devices []Device
	for _, name := range names {
		device, err := inspect(filepath.Base(filepath.Dir(filepath.Dir(name))))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) {
			continue // detached since it was listed
		}
		if err != nil {
			return nil, err
		}
		devices = append(devices, device)
	}
	return devices, nil
}

// Inspect returns the device with the path /dev/loop<N>. A device without a file behind it is os.ErrNotExist or
// unix.ENXIO.
func Inspect(path string) (Device, error) {
	name := filepath.Base(path)
	if filepath.Join("/dev", name) != path || !strings.HasPrefix(name, "loop") {
		return Device{}, fmt.Errorf("%s is not the path of a loop device", path)
	}
	return inspect(name)
}

func inspect(name string) (Device, error) {
	content, err := os.ReadFile(filepath.Join(sysBlock, name, "loop", "backing_file"))
	if err != nil {
		return Device{}, err
	}
	f, err := openDevice(name, os.O_RDONLY)
	if err != nil {
		return Device{}, err
	}
	defer f.Close()
	status, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return Device{}, fmt.Errorf("reading the status of %s: %w", f.Name(), err)
	}
	filePath, deleted := strings.CutSuffix(strings.TrimSuffix(string(content), "\n"), " (deleted)")
	return Device{
		Path: f.Name(), File: File{Device: status.Device, Inode: status.Inode}, FilePath: filePath, Deleted: deleted,
	}, nil
}

// Resize makes the device as large as the file behind it is now.
func (d Device) Resize() error {
	return d.ioctl(unix.LOOP_SET_CAPACITY, "resizing")
}

// Detach frees the device. A device that is in use becomes free when it is no longer used.
func (d Device) Detach() error {
	return d.ioctl(unix.LOOP_CLR_FD, "detaching")
}

// ioctl makes a request that takes no argument, if the device still has the file behind it that it had.
func (d Device) ioctl(request uint, doing string) error {
	f, err := openDevice(filepath.Base(d.Path), os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	status, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return fmt.Errorf("%s %s: %w", doing, d.Path, err)
	}
	if now := (File{Device: status.Device, Inode: status.Inode}); now != d.File {
		return fmt.Errorf("%s %s: another file is attached to it now", doing, d.Path)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), request, 0); err != nil {
		return fmt.Errorf("%s %s: %w", doing, d.Path, err)
	}
	return nil
}

// openDevice opens /dev/<name>. The /dev of a container has only the devices that existed when it was started, so
// the device file is made if it is missing.
func openDevice(name string, flag int) (*os.File, error) {
	content, err := os.ReadFile(filepath.Join(sysBlock, name, "dev"))
	if err != nil {
		return nil, err
	}
	var gotMajor, minor uint32
	if _, err := fmt.Sscanf(string(content), "%d:%d", &gotMajor, &minor); err != nil || gotMajor != major || minor > maxNumber {
		return nil, fmt.Errorf("device number %q of %s is not one of a loop device", content, name)
	}
	path := filepath.Join("/dev", name)
	if err := ensureDeviceFile(path, unix.S_IFBLK, unix.Mkdev(major, minor)); err != nil {
		return nil, err
	}
	return os.OpenFile(path, flag, 0)
}

func ensureDeviceFile(path string, kind uint32, number uint64) error {
	if err := unix.Mknod(path, kind|0o660, int(number)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("making device file %s: %w", path, err)
	}
	return nil
}
