// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/random"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// smallVolume mounts a volume of its own with 16 MiB, and returns its folder.
func smallVolume(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := limit(t, dir, "16m"); err != nil {
		t.Skipf("a volume with a limit can only be mounted by root: %v", err)
	}
	return dir
}

// limit mounts a volume of the size, such as "16m", at the folder. It returns an error if that is not allowed.
func limit(t *testing.T, dir, size string) error {
	t.Helper()
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		return err
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unmount(dir); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	return nil
}

// unmount waits for the processes that other tests start: until such a one executes its program it has copies of all
// files that are open here.
func unmount(dir string) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); ; <-tick.C {
		if err := syscall.Unmount(dir, 0); !errors.Is(err, syscall.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}

// metric returns the value of a metric.
func (c *cache) metric(t *testing.T, name string) float64 {
	t.Helper()
	for line := range strings.Lines(string(c.debug(t, "/metrics").body)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			number, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return number
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// pushLayers puts an image with n layers of the size there, and returns digests and contents.
func (u *origin) pushLayers(t testing.TB, tag string, n int, size int64) (digests []string, contents [][]byte) {
	t.Helper()
	image, err := random.Image(size, int64(n))
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Push(t.Context(), "docker.io/"+repository+":"+tag, image); err != nil {
		t.Fatal(err)
	}
	return layers(t, image)
}

func TestSmallVolumeNeverFillsUp(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	// 24 MiB for a volume of 16.
	digests, contents := u.pushLayers(t, tag, 24, 1<<20)
	cfg := u.config(t)
	cfg.Storage.Root = smallVolume(t)
	c := start(t, cfg, cacheserver.Options{})
	// Content with frequent requests and content with a request in progress are not evicted.
	slow := c.open(t, "GET", "blobs/"+digests[1])
	defer slow.Body.Close()
	for i, d := range digests {
		if got := c.do(t, "GET", "blobs/"+d); got.status != 200 || !bytes.Equal(got.body, contents[i]) {
			t.Fatalf("layer %d: %d, %d bytes, %v", i, got.status, len(got.body), got.err)
		}
		c.settle(t)
		if got := c.do(t, "GET", "blobs/"+digests[0]); got.status != 200 || !bytes.Equal(got.body, contents[0]) {
			t.Fatalf("first layer: %d, %d bytes, %v", got.status, len(got.body), got.err)
		}
		eventually(t, "the volume is below the high watermark", func() bool {
			return c.metric(t, "registry_cache_volume_used_bytes") < 0.9*c.metric(t, "registry_cache_volume_limit_bytes")
		})
	}
	if got := c.metric(t, `registry_cache_evictions_total{reason="least-recently-used"}`); got < 24-16 {
		t.Errorf("%v evictions", got)
	}
	if got := c.metric(t, "registry_cache_oldest_object_age_seconds"); got <= 0 || got > 60 {
		t.Errorf("oldest object: %v s", got)
	}
	gets := 0
	for _, q := range u.requests() {
		if q == "GET blob "+digests[0] {
			gets++
		}
	}
	if gets != 1 {
		t.Errorf("what is used all the time was fetched %d times", gets)
	}
	if found := strings.Join(committed(t, c.root), "\n"); strings.Count(found, "/_layers/") != strings.Count(found, "/data") {
		t.Errorf("links and content do not match:\n%s", found)
	}
}

// New content replaces the least recently used content of a full volume, and requires one transfer.
func TestRoomIsMadeForWhatIsNew(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	digests, contents := u.pushLayers(t, tag, 8, 5<<20)
	cfg := u.config(t)
	cfg.Storage.Root = smallVolume(t)
	// The watermark alone would not do it: two layers stay below it, and there is no room for a third.
	cfg.Storage.HighWatermark, cfg.Storage.LowWatermark = 99, 70
	c := start(t, cfg, cacheserver.Options{})
	eventually(t, "the volume is known", func() bool { return strings.Contains(c.log.String(), "Indexed the volume") })
	for i, d := range digests {
		var pulls sync.WaitGroup
		for range 5 {
			pulls.Go(func() {
				if got := c.do(t, "GET", "blobs/"+d); got.status != 200 || !bytes.Equal(got.body, contents[i]) {
					t.Errorf("layer %d: %d, %d bytes, %v", i, got.status, len(got.body), got.err)
				}
			})
		}
		pulls.Wait()
		c.settle(t)
	}
	if got := c.metric(t, "registry_cache_storage_errors_total"); got != 0 {
		t.Errorf("%v objects could not be stored", got)
	}
	gets := map[string]int{}
	for _, q := range u.requests() {
		gets[q]++
	}
	for _, d := range digests {
		if gets["GET blob "+d] != 1 {
			t.Errorf("%s was fetched %d times", d, gets["GET blob "+d])
		}
	}
}

// TestFullVolumeDoesNotReachPulls has layers that do not fit together, and one that never fits, pulled by many at once,
// with a volume that other programs have filled.
func TestFullVolumeDoesNotReachPulls(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	digests, contents := u.pushLayers(t, tag, 6, 4<<20)
	large, largeContent := u.pushLayers(t, "large", 1, 20<<20)
	digests, contents = append(digests, large...), append(contents, largeContent...)
	cfg := u.config(t)
	cfg.Storage.Root = smallVolume(t)
	c := start(t, cfg, cacheserver.Options{})
	filler := filepath.Join(cfg.Storage.Root, "filler")
	if err := os.WriteFile(filler, make([]byte, 3<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		var pulls sync.WaitGroup
		for i := range digests {
			pulls.Go(func() {
				resp := c.open(t, "GET", "blobs/"+digests[i])
				defer resp.Body.Close()
				var got bytes.Buffer
				if _, err := got.ReadFrom(resp.Body); err != nil || resp.StatusCode != 200 || !bytes.Equal(got.Bytes(), contents[i]) {
					t.Errorf("layer %d: %d, %d bytes, %v", i, resp.StatusCode, got.Len(), err)
				}
			})
		}
		pulls.Wait()
	}
	if got := c.metric(t, "registry_cache_storage_errors_total"); got == 0 {
		t.Error("the volume was never full, so this shows nothing")
	}
	// It is used again as soon as there is room.
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a layer is stored and served again", func() bool {
		got := c.do(t, "GET", "blobs/"+digests[0])
		if got.status != 200 || !bytes.Equal(got.body, contents[0]) {
			t.Fatalf("%d, %d bytes, %v", got.status, len(got.body), got.err)
		}
		c.settle(t)
		return strings.Contains(strings.Join(committed(t, c.root), "\n"), strings.TrimPrefix(digests[0], "sha256:"))
	})
}
