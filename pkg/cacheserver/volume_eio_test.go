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

// shrinkingDisk is an ext4 file system on a loop device. After cut, the kernel returns EIO for the blocks behind an offset,
// because the device has become smaller.
type shrinkingDisk struct {
	t      *testing.T
	image  string
	device string
	root   string
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
	var err error
	if d.device, err = d.run("losetup", "--show", "--find", d.image); err != nil {
		t.Skip(err)
	}
	detach := func() {
		if _, err := d.run("losetup", "--detach", d.device); err != nil {
			t.Error(err)
		}
	}
	if _, err := d.run("mount", d.device, d.root); err != nil {
		detach()
		t.Skip(err)
	}
	t.Cleanup(func() {
		if _, err := d.run("umount", "--lazy", d.root); err != nil {
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

// remount empties the page cache of the file system. FADV_DONTNEED would not: pages that were sent with sendfile stay as long
// as the kernel keeps the segments that contained them, which was more than 10 s on an idle machine.
func (d *shrinkingDisk) remount() {
	d.t.Helper()
	d.unmount()
	if _, err := d.run("mount", d.device, d.root); err != nil {
		d.t.Fatal(err)
	}
}

// unmount waits for descriptors of the file system that a concurrent fork has inherited.
func (d *shrinkingDisk) unmount() {
	d.t.Helper()
	eventually(d.t, "the file system is unmounted", func() bool {
		_, err := d.run("umount", d.root)
		if err != nil && !strings.Contains(err.Error(), "busy") {
			d.t.Fatal(err)
		}
		return err == nil
	})
}

// firstExtent matches the first extent in the output of filefrag: its last logical block and its first physical block, as in
// "   0:        0..     256:       2096..      2352:    257:             last,eof".
var firstExtent = regexp.MustCompile(`(?m)^ +0: +0\.\. *(\d+): +(\d+)\.\.`)

// cut makes the bytes of a file from the offset on unreadable, and all later blocks of the file system. The page cache must
// not contain them.
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
	size := physical*blockSize + offset
	eventually(d.t, "the disk shrinks", func() bool {
		if err := os.Truncate(d.image, size); err != nil {
			d.t.Fatal(err)
		}
		if _, err := d.run("losetup", "--set-capacity", d.device); err != nil {
			d.t.Fatal(err)
		}
		// A write between the two commands makes the file larger again.
		now, err := os.Stat(d.image)
		if err != nil {
			d.t.Fatal(err)
		}
		return now.Size() == size
	})
}

// A1: the disk cannot read the second half of a stored layer. A client that resumes never gets wrong bytes: it gets the
// missing bytes, or an error before the header, after which it pulls from the upstream. The next request gets all bytes.
func TestUnreadableSectors(t *testing.T) {
	t.Parallel()
	disk := newShrinkingDisk(t)
	u := newOrigin(t, upstream.Options{})
	digests, contents := layers(t, u.push(t, tag, 1))
	cfg := u.config(t)
	cfg.Storage.Root = disk.root
	before := start(t, cfg, cacheserver.Options{})
	if err := before.pull(t.Context(), tag); err != nil {
		t.Fatal(err)
	}
	before.settle(t)
	if err := before.stop(); err != nil {
		t.Fatal(err)
	}
	disk.remount()
	// The directories stay readable.
	if names := files(t, disk.root); len(names) == 0 {
		t.Fatal("the volume is empty")
	}
	hex := strings.TrimPrefix(digests[0], "sha256:")
	disk.cut(filepath.Join(disk.root, "docker/registry/v2/blobs/sha256", hex[:2], hex, "data"), layerSize/2)
	// Not earlier, because it verifies the content that it finds, which fills the page cache.
	c := start(t, cfg, cacheserver.Options{})

	// A complete request of the same client would be verified before its response.
	const offset = 100
	want := contents[0][offset:]
	blob := "blobs/" + digests[0]
	first := c.do(t, "GET", blob, "Range", fmt.Sprintf("bytes=%d-", offset))
	if first.status == http.StatusPartialContent && !bytes.HasPrefix(want, first.body) {
		t.Error("the client got wrong bytes")
	}
	if want = want[min(len(first.body), len(want)):]; len(want) > 0 {
		resumed := c.do(t, "GET", blob, "Range", fmt.Sprintf("bytes=%d-", offset+len(first.body)))
		if ok := resumed.status == http.StatusPartialContent && resumed.err == nil && bytes.Equal(resumed.body, want); !ok && resumed.status < 500 {
			t.Errorf("resumed: %d, %d bytes, %v", resumed.status, len(resumed.body), resumed.err)
		}
	} else if first.err != nil {
		t.Error(first.err)
	}
	if next := c.do(t, "GET", blob); next.status != http.StatusOK || !bytes.Equal(next.body, contents[0]) {
		t.Errorf("next request: %d, %d bytes, %v", next.status, len(next.body), next.err)
	}
	// Without this failure, the test does not test what it should.
	eventually(t, "the failure of the volume is counted", func() bool {
		return c.metric(t, `registry_cache_volume_failures_total{state="error"}`) > 0
	})
	// The second layer is unreadable, too, so that one pull of it may fail.
	if c.pull(t.Context(), tag) != nil {
		if err := c.pull(t.Context(), tag); err != nil {
			t.Errorf("next pull: %v", err)
		}
	}
}
