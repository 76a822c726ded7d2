// SPDX-License-Identifier: Apache-2.0

package disk_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/registry-cache/extension/test/testbed/volumes/disk"
	"github.com/registry-cache/extension/test/testbed/volumes/loop"
)

const mib = 1 << 20

func TestSize(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name            string
		required, limit int64
		want            int64
		wantErr         string
	}{
		{name: "nothing said", want: disk.MinSize},
		{name: "whole mebibytes stay", required: 10 << 30, want: 10 << 30},
		{name: "decimal megabytes are rounded up", required: 500_000_000, want: 477 * mib},
		{name: "one byte more is one mebibyte more", required: 100*mib + 1, want: 101 * mib},
		{name: "smallest", required: 16 * mib, want: 16 * mib},
		{name: "largest", required: disk.MaxSize, want: disk.MaxSize},
		{name: "limit met", required: 20*mib + 1, limit: 21 * mib, want: 21 * mib},
		{name: "limit alone", limit: 64 * mib, want: disk.MinSize},
		{name: "limit not met", required: 20*mib + 1, limit: 21*mib - 1, wantErr: "no size between 20971521 and 22020095"},
		{name: "limit too small", limit: 15 * mib, wantErr: "too small for XFS: ask for 16Mi"},
		{name: "too small", required: mib, wantErr: "too small for XFS: ask for 16Mi"},
		{name: "too large", required: disk.MaxSize + 1, wantErr: "more than a volume can have"},
		{name: "negative", required: -1, wantErr: "sizes are positive"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := disk.Size(tc.required, tc.limit)
			if got != tc.want || (tc.wantErr == "") != (err == nil) {
				t.Fatalf("Size(%d, %d) = %d, %v; want %d, %q", tc.required, tc.limit, got, err, tc.want, tc.wantErr)
			}
			var sizeError *disk.SizeError
			if err != nil && (!errors.As(err, &sizeError) || !strings.Contains(err.Error(), tc.wantErr)) {
				t.Errorf("error %v (%T), want a *SizeError with %q", err, err, tc.wantErr)
			}
		})
	}
}

func TestNamesStayInTheFolder(t *testing.T) {
	t.Parallel()
	folder := open(t, t.TempDir())
	for _, name := range []string{"", "..", "../other", "a/b", "A", "a..b", ".hidden", strings.Repeat("a", 300)} {
		if path, err := folder.Path(name); err == nil {
			t.Errorf("Path(%q) = %q, want an error", name, path)
		}
	}
	if _, err := folder.Path("pvc-3f0c7d3e-5a52-4c3f-8d4c-0a4f6f8a2b11"); err != nil {
		t.Error(err)
	}
}

func TestAbsentDisk(t *testing.T) {
	t.Parallel()
	folder := open(t, t.TempDir())
	if _, err := folder.Size("absent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Size: %v, want os.ErrNotExist", err)
	}
	if _, err := folder.Grow("absent", disk.MinSize); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Grow: %v, want os.ErrNotExist", err)
	}
	if err := folder.Remove("absent"); err != nil {
		t.Errorf("Remove: %v, want no error", err)
	}
}

func TestInterruptedCreateLeavesNoDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	partial := filepath.Join(dir, "cut-off.img.partial")
	if err := os.WriteFile(partial, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	folder := open(t, dir)
	names, err := folder.Names()
	if err != nil || len(names) > 0 {
		t.Errorf("Names() = %v, %v; want none", names, err)
	}
	if _, err := os.Stat(partial); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", partial, err)
	}
}

func TestFailedFormatLeavesNoFile(t *testing.T) {
	needProgram(t, "mkfs.xfs")
	t.Parallel()
	dir := t.TempDir()
	folder := open(t, dir)
	if err := folder.Create(t.Context(), "tiny", mib); err == nil || !strings.Contains(err.Error(), "creating disk tiny") {
		t.Errorf("Create of 1 MiB: %v, want an error of mkfs.xfs that names the disk", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left in the folder: %v, %v", entries, err)
	}
}

func TestCreateIsIdempotent(t *testing.T) {
	needProgram(t, "mkfs.xfs")
	t.Parallel()
	dir := t.TempDir()
	folder := open(t, dir)
	if err := folder.Create(t.Context(), "a", 32*mib); err != nil {
		t.Fatal(err)
	}
	before, err := loop.FileOf(filepath.Join(dir, "a.img"))
	if err != nil {
		t.Fatal(err)
	}
	if err := folder.Create(t.Context(), "a", 32*mib); err != nil {
		t.Errorf("second Create: %v", err)
	}
	if after, err := loop.FileOf(filepath.Join(dir, "a.img")); err != nil || after != before {
		t.Errorf("the second Create replaced the disk: %v, %v (%v)", before, after, err)
	}
	if err := folder.Create(t.Context(), "a", 48*mib); err == nil || !strings.Contains(err.Error(), "exists with 33554432 bytes") {
		t.Errorf("Create with another size: %v", err)
	}
	if names, err := folder.Names(); err != nil || !slices.Equal(names, []string{"a"}) {
		t.Errorf("Names() = %v, %v", names, err)
	}
}

// The life of a disk with the real kernel: what can be written is what the size says, before and after it grew.
func TestDiskLimitsWhatIsWritten(t *testing.T) {
	needProgram(t, "mkfs.xfs")
	needProgram(t, "xfs_growfs")
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	folder := open(t, t.TempDir())
	// 32 MiB is below what mkfs.xfs supports, 320 MiB is above it and has a log of 64 MiB.
	for name, sizes := range map[string][2]int64{"small": {32 * mib, 320 * mib}, "supported": {320 * mib, 400 * mib}} {
		t.Run(name, func(t *testing.T) {
			if err := folder.Create(t.Context(), name, sizes[0]); err != nil {
				t.Fatal(err)
			}
			mountPoint := mount(t, folder, name)
			first := fill(t, mountPoint, "first")
			if first < sizes[0]*7/10 || first > sizes[0] {
				t.Errorf("%d bytes could be written to a disk of %d", first, sizes[0])
			}
			if err := folder.Remove(name); !errors.Is(err, disk.ErrInUse) {
				t.Fatalf("Remove of a mounted disk: %v, want ErrInUse", err)
			}

			size, err := folder.Grow(name, sizes[1])
			if err != nil || size != sizes[1] {
				t.Fatalf("Grow = %d, %v; want %d", size, err, sizes[1])
			}
			device, err := folder.Attached(name)
			if err != nil || device == nil {
				t.Fatalf("Attached = %v, %v; want a device", device, err)
			}
			if err := device.Resize(); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second one has nothing to do
				if err := disk.GrowFileSystem(t.Context(), mountPoint); err != nil {
					t.Fatal(err)
				}
			}
			grown, second := sizes[1]-sizes[0], fill(t, mountPoint, "second")
			if second < grown*8/10 || second > grown {
				t.Errorf("%d bytes could be written after the disk grew by %d", second, grown)
			}
			if size, err := folder.Grow(name, sizes[0]); err != nil || size != sizes[1] {
				t.Errorf("Grow to less = %d, %v; want the size to stay %d", size, err, sizes[1])
			}

			unmount(t, mountPoint)
			if device, err := folder.Attached(name); err != nil || device != nil {
				t.Errorf("attached after the unmount: %v, %v", device, err)
			}
			if err := folder.Remove(name); err != nil {
				t.Fatal(err)
			}
			if _, err := folder.Size(name); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("Size after Remove: %v, want os.ErrNotExist", err)
			}
		})
	}
}

func open(t *testing.T, dir string) *disk.Folder {
	t.Helper()
	folder, err := disk.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return folder
}

func needProgram(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed (Debian package xfsprogs)", name)
	}
}

// mount attaches and mounts a disk on a new folder.
func mount(t *testing.T, folder *disk.Folder, name string) string {
	t.Helper()
	path, err := folder.Path(name)
	if err != nil {
		t.Fatal(err)
	}
	attachment, err := loop.Attach(path)
	if errors.Is(err, unix.EPERM) {
		t.Skipf("this machine does not let root attach loop devices: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	mountPoint := t.TempDir()
	if err := errors.Join(unix.Mount(attachment.Path, mountPoint, "xfs", 0, ""), attachment.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mountPoint, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	})
	return mountPoint
}

func unmount(t *testing.T, mountPoint string) {
	t.Helper()
	if err := unix.Unmount(mountPoint, 0); err != nil {
		t.Fatal(err)
	}
}

// fill writes a file until the disk is full, and returns its size in bytes.
func fill(t *testing.T, dir, name string) int64 {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 256<<10)
	var written int64
	for written < 2<<30 {
		n, err := f.Write(block)
		written += int64(n)
		if errors.Is(err, unix.ENOSPC) {
			return written
		}
		if err != nil {
			t.Fatalf("writing after %d bytes: %v, want ENOSPC", written, err)
		}
	}
	t.Fatalf("%d bytes written, and the disk is not full", written)
	return 0
}
