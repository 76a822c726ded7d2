// SPDX-License-Identifier: Apache-2.0

package volumes

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/registry-cache/extension/test/testbed/volumes/loop"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

func TestCollectOrphans(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	attach := func(folder string) (device loop.Device, path string) {
		t.Helper()
		dir := filepath.Join(t.TempDir(), folder)
		path = filepath.Join(dir, "disk.img")
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(path, make([]byte, 1<<20), 0o600)); err != nil {
			t.Fatal(err)
		}
		attachment, err := loop.Attach(path)
		if errors.Is(err, unix.EPERM) {
			t.Skipf("this machine does not let root attach loop devices: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := attachment.Close(); err != nil {
				t.Error(err)
			}
		})
		if device, err = loop.Inspect(attachment.Path); err != nil {
			t.Fatal(err)
		}
		return device, path
	}
	orphan, orphanPath := attach("registry-cache-testbed/volumes")
	foreign, foreignPath := attach("somebody/volumes")
	live, _ := attach("registry-cache-testbed/volumes")
	if err := errors.Join(os.Remove(orphanPath), os.Remove(foreignPath)); err != nil {
		t.Fatal(err)
	}

	var output bytes.Buffer
	if err := CollectOrphans(t.Context(), workspace.NewProgress(&output)); err != nil {
		t.Fatal(err)
	}
	// The devices are open here, so the kernel frees them only afterwards; until then it tells that it will.
	if !strings.Contains(output.String(), orphan.Path+",") {
		t.Errorf("%s was not detached: %s", orphan.Path, &output)
	}
	for _, device := range []loop.Device{foreign, live} {
		if strings.Contains(output.String(), device.Path+",") {
			t.Errorf("%s was detached, which has %s behind it: %s", device.Path, device.FilePath, &output)
		}
	}
}
