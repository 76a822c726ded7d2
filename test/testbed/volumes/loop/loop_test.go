// SPDX-License-Identifier: Apache-2.0

package loop_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/registry-cache/extension/test/testbed/volumes/loop"
)

const mib = 1 << 20

func TestAttachmentLivesUntilItIsClosed(t *testing.T) {
	path := sparseFile(t, 20*mib)
	attachment := attach(t, path)

	device := deviceOf(t, path)
	if device.Path != attachment.Path || device.FilePath != path || device.Deleted {
		t.Errorf("attached to %s, listed as %+v", attachment.Path, device)
	}
	inspected, err := loop.Inspect(attachment.Path)
	if err != nil {
		t.Fatal(err)
	}
	if inspected != device {
		t.Errorf("Inspect returns %+v, List %+v", inspected, device)
	}

	if err := attachment.Close(); err != nil {
		t.Fatal(err)
	}
	if devices := attachedTo(t, device.File); len(devices) > 0 {
		t.Errorf("still attached after the attachment was closed: %+v", devices)
	}
}

func TestResizeFollowsTheFile(t *testing.T) {
	path := sparseFile(t, 20*mib)
	attachment := attach(t, path)
	defer attachment.Close()
	if got := deviceSize(t, attachment.Path); got != 20*mib {
		t.Fatalf("device has %d bytes, want %d", got, 20*mib)
	}
	if err := os.Truncate(path, 50*mib); err != nil {
		t.Fatal(err)
	}
	if err := deviceOf(t, path).Resize(); err != nil {
		t.Fatal(err)
	}
	if got := deviceSize(t, attachment.Path); got != 50*mib {
		t.Errorf("device has %d bytes after its file grew, want %d", got, 50*mib)
	}
}

func TestDetachOfADeletedFile(t *testing.T) {
	path := sparseFile(t, 20*mib)
	attachment := attach(t, path)
	file := deviceOf(t, path).File
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	devices := attachedTo(t, file)
	if len(devices) != 1 || !devices[0].Deleted || devices[0].FilePath != path {
		t.Fatalf("devices of the deleted file %s: %+v", path, devices)
	}
	if err := devices[0].Detach(); err != nil {
		t.Fatal(err)
	}
	if err := attachment.Close(); err != nil {
		t.Fatal(err)
	}
	if devices := attachedTo(t, file); len(devices) > 0 {
		t.Errorf("still attached: %+v", devices)
	}
}

func TestAnotherFileBehindTheDeviceIsLeftAlone(t *testing.T) {
	path := sparseFile(t, 20*mib)
	attachment := attach(t, path)
	defer attachment.Close()
	stale := deviceOf(t, path)
	stale.File.Inode++
	if err := stale.Detach(); err == nil {
		t.Error("Detach of a device that has another file behind it succeeded")
	}
	deviceOf(t, path)
}

func TestInspectRefusesOtherPaths(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/dev/sda", "/tmp/loop0", "/dev/../etc/loop0", "loop0", ""} {
		if _, err := loop.Inspect(path); err == nil {
			t.Errorf("Inspect(%q) succeeded", path)
		}
	}
	if _, err := loop.Inspect("/dev/loop1048577"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Inspect of a device that does not exist: %v, want os.ErrNotExist", err)
	}
}

func sparseFile(t *testing.T, size int64) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	path := filepath.Join(t.TempDir(), "file.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func attach(t *testing.T, path string) *loop.Attachment {
	t.Helper()
	attachment, err := loop.Attach(path)
	if errors.Is(err, unix.EPERM) {
		t.Skipf("this machine does not let root attach loop devices: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return attachment
}

// deviceOf returns the only device that the file at path is attached to.
func deviceOf(t *testing.T, path string) loop.Device {
	t.Helper()
	file, err := loop.FileOf(path)
	if err != nil {
		t.Fatal(err)
	}
	devices := attachedTo(t, file)
	if len(devices) != 1 {
		t.Fatalf("%s is attached to %d devices, want 1: %+v", path, len(devices), devices)
	}
	return devices[0]
}

func attachedTo(t *testing.T, file loop.File) []loop.Device {
	t.Helper()
	all, err := loop.List()
	if err != nil {
		t.Fatal(err)
	}
	var devices []loop.Device
	for _, device := range all {
		if device.File == file {
			devices = append(devices, device)
		}
	}
	return devices
}

func deviceSize(t *testing.T, path string) int64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	return size
}
