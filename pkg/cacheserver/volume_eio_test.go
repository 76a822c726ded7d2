// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// shrinkingDisk is an ext4 file system on a loop device. After cut, the kernel returns EIO for the blocks behind an offset.
type shrinkingDisk struct {
	t     *testing.T
	image string
	root  string
}

// blockSize is that of the file system, in bytes.
const blockSize = 4096

// newShrinkingDisk skips the test without root, loop devices or the tools of ext4.
func newShrinkingDisk(t *testing.T) *shrinkingDisk {
	t.Helper()
	d := &shrinkingDisk{t: t, image: filepath.Join(t.TempDir(), "image"), root: t.TempDir()}
	if err := os.WriteFile(d.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.image, 64<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := d.run("mkfs.ext4", "-q", "-b", fmt.Sprint(blockSize), "-O", "^has_journal", d.image); err != nil {
		t.Skip(err)
	}
	// Without direct I/O, the loop driver returns zeros instead of EIO for missing bytes of its file.
	device, err := d.run("losetup", "--direct-io=on", "--show", "--find", d.image)
	if err != nil {
		t.Skip(err)
	}
	detach := func() {
		if _, err := d.run("losetup", "--detach", device); err != nil {
			t.Error(err)
		}
	}
	if _, err := d.run("mount", device, d.root); err != nil {
		detach()
		t.Skip(err)
	}
	t.Cleanup(func() {
		if _, err := d.run("umount", d.root); err != nil {
			t.Error(err)
		}
		detach()
	})
	return d
}

func (d *shrinkingDisk) run(name string, arguments ...string) (string, error) {
	out, err := exec.CommandContext(context.WithoutCancel(d.t.Context()), name, arguments...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return strings.TrimSpace(string(out)), err
}

// firstExtent matches the first extent in the output of filefrag: its last logical block and its first physical block, as in
// "   0:        0..     256:       2096..      2352:    257:             last,eof".
var firstExtent = regexp.MustCompile(`(?m)^ +0: +0\.\. *(\d+): +(\d+)\.\.`)

// cut makes the bytes of a file from the offset on unreadable, and all later blocks of the file system.
func (d *shrinkingDisk) cut(path string, offset int64) {
	d.t.Helper()
	f, err := os.Open(path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		d.t.Fatal(err)
	}
	extents, err := d.run("filefrag", "-v", path)
	if err != nil {
		d.t.Fatal(err)
	}
	fields := firstExtent.FindStringSubmatch(extents)
	if fields == nil {
		d.t.Fatalf("no extent in %q", extents)
	}
	end, endErr := strconv.ParseInt(fields[1], 10, 64)
	physical, err := strconv.ParseInt(fields[2], 10, 64)
	if err := errors.Join(endErr, err); err != nil {
		d.t.Fatal(err)
	}
	if (end+1)*blockSize <= offset {
		d.t.Fatalf("the first extent does not contain the offset: %s", extents)
	}
	if err := os.Truncate(d.image, physical*blockSize+offset); err != nil {
		d.t.Fatal(err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		d.t.Fatal(err)
	}
}

// A1: the disk cannot read the second half of a stored layer. A client that resumes never gets wrong bytes: it gets the
// missing bytes, or an error before the header, after which it pulls from the upstream. The next pull succeeds.
func TestUnreadableSectors(t *testing.T) {
	t.Parallel()
	disk := newShrinkingDisk(t)
	u := newOrigin(t, upstream.Options{})
	digests, contents := layers(t, u.push(t, tag, 1))
	cfg := u.config(t)
	cfg.Storage.Root = disk.root
	c := start(t, cfg, cacheserver.Options{})
	if err := c.pull(t.Context(), tag); err != nil {
		t.Fatal(err)
	}
	c.settle(t)
	blob := "blobs/" + digests[0]
	if got := c.do(t, "GET", blob); got.status != http.StatusOK || !bytes.Equal(got.body, contents[0]) {
		t.Fatalf("before: %d, %d bytes, %v", got.status, len(got.body), got.err)
	}
	hex := strings.TrimPrefix(digests[0], "sha256:")
	disk.cut(filepath.Join(disk.root, "docker/registry/v2/blobs/sha256", hex[:2], hex, "data"), layerSize/2)

	// A complete request of the same client would be verified before its response.
	const start = 100
	want := contents[0][start:]
	first := c.do(t, "GET", blob, "Range", fmt.Sprintf("bytes=%d-", start))
	if first.status == http.StatusPartialContent && !bytes.HasPrefix(want, first.body) {
		t.Error("the client got wrong bytes")
	}
	if first.err == nil && len(first.body) == len(want) {
		t.Error("the disk could read the layer: this test does not test what it should")
	}
	want = want[len(first.body):]
	resumed := c.do(t, "GET", blob, "Range", fmt.Sprintf("bytes=%d-", start+len(first.body)))
	if ok := resumed.status == http.StatusPartialContent && resumed.err == nil && bytes.Equal(resumed.body, want); !ok && resumed.status < 500 {
		t.Errorf("resumed: %d, %d bytes, %v", resumed.status, len(resumed.body), resumed.err)
	}
	if err := c.pull(t.Context(), tag); err != nil {
		t.Errorf("next pull: %v", err)
	}
	if got := c.metric(t, `registry_cache_volume_failures_total{state="error"}`); got == 0 {
		t.Error("the failure of the volume is not counted")
	}
}
