// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// faultyVolume counts the operations on new files, and lets some of them fail.
type faultyVolume struct {
	err error
	// lost lets files vanish that were flushed, so that they cannot be renamed, instead of letting the flush fail.
	lost bool

	mu          sync.Mutex // guards the following fields
	steps       int
	first, last int // the steps that fail, counted from 1; none if first is 0
}

func (v *faultyVolume) step() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.steps++
	if v.first > 0 && v.first <= v.steps && v.steps <= v.last {
		return v.err
	}
	return nil
}

// heal ends the fault, and returns whether anything has failed.
func (v *faultyVolume) heal() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	failed := v.first > 0 && v.steps >= v.first
	v.first = 0
	return failed
}

// fail lets everything fail from now on.
func (v *faultyVolume) fail() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.steps, v.first, v.last = 0, 1, math.MaxInt
}

// inject is volume.Options.Fault.
func (v *faultyVolume) inject(op volume.Op, path string) error {
	if !isStep(op, path) {
		return nil
	}
	err := v.step()
	if err != nil && op == volume.OpSync && v.lost {
		return os.Remove(path)
	}
	return err
}

// isStep reports whether the operation creates a file of the store, writes it, flushes it before its rename, or renames it.
// Later flushes have no effect on a pull, and happen in any order.
func isStep(op volume.Op, path string) bool {
	switch op {
	case volume.OpCreate:
		_, err := os.Stat(path) // without the directory, the store creates it and the file afterwards
		return err == nil && filepath.Base(path) == "partial"
	case volume.OpWrite, volume.OpSync:
		return filepath.Base(filepath.Dir(path)) == "partial"
	case volume.OpRename:
		return !strings.HasPrefix(filepath.Base(path), "probe")
	default:
		return false
	}
}

func smallImage(t *testing.T, u *origin) v1.Image {
	t.Helper()
	image, err := images.Generate(images.Spec{Seed: 1, LayerSizes: []int64{30 << 10, 3000}})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Push(t.Context(), "docker.io/"+repository+":"+tag, image); err != nil {
		t.Fatal(err)
	}
	return image
}

// TestEachWriteFails lets each step of storing an image fail, alone and with all that come after it: making a file,
// writing, flushing, and renaming it. The pull succeeds all the same, and the next one stores the image.
func TestEachWriteFails(t *testing.T) {
	t.Parallel()
	const maxSteps = 200 // the image takes about 40
	for _, fault := range []struct {
		name  string
		err   error
		lost  bool
		steps int
	}{
		{"ENOSPC once", syscall.ENOSPC, false, 1},
		{"ENOSPC from then on", syscall.ENOSPC, false, maxSteps},
		{"EIO once", syscall.EIO, false, 1},
		{"EIO from then on", syscall.EIO, false, maxSteps},
		{"the file to rename is gone once", syscall.EIO, true, 1},
	} {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel()
			u := newOrigin(t, upstream.Options{})
			smallImage(t, u)
			for k := 1; ; k++ {
				if k > maxSteps {
					t.Fatalf("more than %d steps", maxSteps)
				}
				faulty := &faultyVolume{err: fault.err, lost: fault.lost, first: k, last: k + fault.steps - 1}
				cfg := u.config(t)
				// A write error about a full volume frees space, independent of the free space of this machine.
				cfg.Storage.HighWatermark, cfg.Storage.LowWatermark = 100, 99
				c := start(t, cfg, cacheserver.Options{Volume: volume.Options{Fault: faulty.inject}})
				pull := func(what string) {
					t.Helper()
					if err := c.pull(t.Context(), tag); err != nil {
						t.Errorf("step %d, %s: %v", k, what, err)
					}
					c.settle(t)
				}
				pull("pull with the fault")
				checkStore(t, c.root)
				failed := faulty.heal()
				pull("pull after the fault")
				u.requests()
				pull("next pull")
				if diff := cmp.Diff([]string{"HEAD manifest v1"}, u.requests()); diff != "" {
					t.Errorf("step %d is not made up for: -want +got\n%s", k, diff)
				}
				if err := c.stop(); err != nil {
					t.Error(err)
				}
				checkStore(t, c.root)
				if t.Failed() {
					return
				}
				if !failed {
					if k < 30 {
						t.Errorf("a pull took %d steps, so this shows little", k-1)
					}
					return
				}
			}
		})
	}
}

// Clients get a blob although the file to which it is being downloaded cannot be read any more. The upstream is silent
// meanwhile, so that only the responses read the file.
func TestUnreadableDownload(t *testing.T) {
	t.Parallel()
	content := make([]byte, 2<<20)
	for i := range content {
		content[i] = byte(i >> 8 * 7)
	}
	d := digest.FromBytes(content)
	u := newOrigin(t, upstream.Options{})
	var first atomic.Bool
	u.inject(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		if first.CompareAndSwap(false, true) {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			_, _ = w.Write(content[:len(content)/2])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return true
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
		return true
	})
	var unreadable atomic.Bool
	fault := func(op volume.Op, path string) error {
		if op == volume.OpRead && unreadable.Load() && strings.Contains(path, "/partial/") {
			return syscall.EIO
		}
		return nil
	}
	c := start(t, u.config(t), cacheserver.Options{Volume: volume.Options{Fault: fault}})
	resp := c.open(t, http.MethodGet, "blobs/"+d.String())
	defer resp.Body.Close()
	begin := make([]byte, len(content)/2)
	if _, err := io.ReadFull(resp.Body, begin); err != nil {
		t.Fatal(err)
	}
	unreadable.Store(true)
	got := c.do(t, http.MethodGet, "blobs/"+d.String(), "Range", "bytes=100000-")
	if got.status != http.StatusPartialContent || got.err != nil || !bytes.Equal(got.body, content[100000:]) {
		t.Errorf("new client: %d, %d bytes, %v", got.status, len(got.body), got.err)
	}
	rest, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(slices.Concat(begin, rest), content) {
		t.Errorf("client of the first response: %d more bytes, %v", len(rest), err)
	}
}

// TestTornFiles starts servers on volumes that a power failure, or another program, has damaged.
func TestTornFiles(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	image := smallImage(t, u)
	digests, _ := layers(t, image)
	hex := func(d string) string { return strings.TrimPrefix(d, "sha256:") }
	data := func(d string) string { return "docker/registry/v2/blobs/sha256/" + hex(d)[:2] + "/" + hex(d) + "/data" }
	const names = "docker/registry/v2/repositories/" + repository
	manifest := digestOf(t, image)
	other := digest.FromString("something else").String()
	cut := func(s string) string { return s[:len(s)/2] }
	for _, test := range []struct {
		name, path string
		tear       func(content string) string
	}{
		{"manifest, empty", data(manifest), func(string) string { return "" }},
		{"manifest, cut", data(manifest), cut},
		{"manifest, zeros", data(manifest), func(s string) string { return strings.Repeat("\x00", len(s)) }},
		{"blob, cut", data(digests[0]), cut},
		{"blob, longer", data(digests[0]), func(s string) string { return s + "\x00" }},
		{"blob, empty", data(digests[0]), func(string) string { return "" }},
		{"link of a blob, empty", names + "/_layers/sha256/" + hex(digests[0]) + "/link", func(string) string { return "" }},
		{"link of a blob, cut", names + "/_layers/sha256/" + hex(digests[0]) + "/link", cut},
		{"link of a blob, to another one", names + "/_layers/sha256/" + hex(digests[0]) + "/link", func(string) string { return other }},
		{"link of a manifest, empty", names + "/_manifests/revisions/sha256/" + hex(manifest) + "/link", func(string) string { return "" }},
		{"link of a manifest, cut", names + "/_manifests/revisions/sha256/" + hex(manifest) + "/link", cut},
		{"tag, empty", names + "/_manifests/tags/v1/current/link", func(string) string { return "" }},
		{"tag, cut", names + "/_manifests/tags/v1/current/link", cut},
		{"tag, of what is not there", names + "/_manifests/tags/v1/current/link", func(string) string { return other }},
		{"last uses, empty", "registry-cache/last-use", func(string) string { return "" }},
		{"last uses, cut", "registry-cache/last-use", cut},
		{"last uses, garbage", "registry-cache/last-use", func(string) string { return strings.Repeat("\x00\xff garbage", 1<<16) }},
		{"unfinished blob", "registry-cache/partial/" + hex(digests[0]) + "-1", func(string) string { return "half" }},
		{"state of the stock registry, empty", "scheduler-state.json", func(string) string { return "" }},
		{"upload of the stock registry", names + "/_uploads/1/data", func(string) string { return "half" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			u := newOrigin(t, upstream.Options{})
			smallImage(t, u)
			cfg := u.config(t)
			filled := start(t, cfg, cacheserver.Options{})
			if err := filled.pull(t.Context(), tag); err != nil {
				t.Fatal(err)
			}
			filled.settle(t)
			if err := filled.stop(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(cfg.Storage.Root, test.path)
			content, err := os.ReadFile(path)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(test.tear(string(content))), 0o644); err != nil {
				t.Fatal(err)
			}

			c := start(t, cfg, cacheserver.Options{})
			if got := c.debug(t, "/readyz"); got.status != 200 {
				t.Errorf("ready: %d", got.status)
			}
			if err := c.pull(t.Context(), tag); err != nil {
				t.Errorf("pull from the torn volume: %v", err)
			}
			c.settle(t)
			u.requests()
			if err := c.pull(t.Context(), tag); err != nil {
				t.Errorf("next pull: %v", err)
			}
			if diff := cmp.Diff([]string{"HEAD manifest v1"}, u.requests()); diff != "" {
				t.Errorf("the volume is not mended: -want +got\n%s", diff)
			}
			if err := c.stop(); err != nil {
				t.Error(err)
			}
			if err := os.Remove(filepath.Join(cfg.Storage.Root, "scheduler-state.json")); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
			checkStore(t, c.root)
		})
	}
	// Without its state file, the server has the same information as before.
	t.Run("no state, no upstream", func(t *testing.T) {
		t.Parallel()
		u := newOrigin(t, upstream.Options{})
		image := smallImage(t, u)
		cfg := u.config(t)
		filled := start(t, cfg, cacheserver.Options{})
		if err := filled.pull(t.Context(), tag); err != nil {
			t.Fatal(err)
		}
		filled.settle(t)
		if err := filled.stop(); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(cfg.Storage.Root, "registry-cache")); err != nil {
			t.Fatal(err)
		}
		u.front.Close()
		c := start(t, cfg, cacheserver.Options{})
		if err := c.pull(t.Context(), tag); err != nil {
			t.Error(err)
		}
		wantStale(t, c, digestOf(t, image))
		eventually(t, "the index is rebuilt", func() bool { return strings.Contains(c.log.String(), fmt.Sprintf(`"objects":%d`, 4)) })
	})
}

// startWithImage starts a cache that has stored an image, and returns the layers.
func startWithImage(t *testing.T, o cacheserver.Options) (u *origin, c *cache, digests []string, contents [][]byte) {
	t.Helper()
	u = newOrigin(t, upstream.Options{})
	digests, contents = layers(t, u.push(t, tag, 1))
	c = start(t, u.config(t), o)
	if err := c.pull(t.Context(), tag); err != nil {
		t.Fatal(err)
	}
	c.settle(t)
	return u, c, digests, contents
}

// A flipped bit costs one attempt of one pull: the client that requests the blob again gets the right content.
func TestFlippedBit(t *testing.T) {
	t.Parallel()
	for name, ranges := range map[string][]string{
		"in one response": {""},
		"resumed":         {"bytes=0-99", "bytes=100-"},
		"in parts":        {"bytes=0-599999", "bytes=600000-9999999"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u, c, digests, contents := startWithImage(t, cacheserver.Options{})
			path := c.flipBit(t, digests[0])
			get := func() (content []byte) {
				t.Helper()
				for _, span := range ranges {
					got := c.do(t, "GET", "blobs/"+digests[0], "Range", span)
					if got.err != nil || got.status != http.StatusOK && got.status != http.StatusPartialContent {
						t.Fatalf("range %q: status %d, %v", span, got.status, got.err)
					}
					content = append(content, got.body...)
				}
				return content
			}
			if got := get(); len(got) != len(contents[0]) || bytes.Equal(got, contents[0]) {
				t.Fatalf("the bit was not flipped: %d bytes", len(got))
			}
			u.requests()
			if got := get(); !bytes.Equal(got, contents[0]) {
				t.Errorf("the next attempt got other content, %d bytes", len(got))
			}
			c.settle(t)
			if requests := slices.Compact(u.requests()); !slices.Equal(requests, []string{"GET blob " + digests[0]}) {
				t.Errorf("requests of the upstream: %v", requests)
			}
			if samples, _ := c.metrics(t); samples[`registry_cache_evictions_total{reason="corrupt"}`] != 1 {
				t.Errorf("%v corrupt objects are counted", samples[`registry_cache_evictions_total{reason="corrupt"}`])
			}
			if logged := strings.Count(c.log.String(), `"msg":"Deleted corrupt content","digest":"`+digests[0]); logged != 1 {
				t.Errorf("the deletion was logged %d times:\n%s", logged, c.log)
			}
			// A blob that is only read in parts is not stored.
			c.do(t, "GET", "blobs/"+digests[0])
			c.settle(t)
			if stored, err := os.ReadFile(path); err != nil || !bytes.Equal(stored, contents[0]) {
				t.Errorf("stored: %d bytes, %v", len(stored), err)
			}
		})
	}
}

// flipBit changes a bit of a stored blob, and returns the path of the file.
func (c *cache) flipBit(t *testing.T, digest string) string {
	t.Helper()
	hex := strings.TrimPrefix(digest, "sha256:")
	path := filepath.Join(c.root, "docker/registry/v2/blobs/sha256", hex[:2], hex, "data")
	stored, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	stored[len(stored)/2] ^= 1
	if err := os.WriteFile(path, stored, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// After one client has received corrupt content, other clients get the right content soon.
func TestFlippedBitAndOtherClients(t *testing.T) {
	t.Parallel()
	_, c, digests, contents := startWithImage(t, cacheserver.Options{})
	eventually(t, "the volume is indexed", func() bool { return strings.Contains(c.log.String(), `"objects":`) })
	// Content that was downloaded within the last hour is not verified again.
	old := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(c.flipBit(t, digests[0]), old, old); err != nil {
		t.Fatal(err)
	}
	// Each client has another address: the second request of one client would start a verification, too.
	client := byte(0)
	get := func() []byte {
		client++
		transport := &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, client)}}).DialContext}
		defer transport.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+c.Address()+"/v2/"+repository+"/blobs/"+digests[0], nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	if bytes.Equal(get(), contents[0]) {
		t.Fatal("the bit was not flipped")
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for client < 100 {
		<-tick.C
		if bytes.Equal(get(), contents[0]) {
			return
		}
	}
	t.Errorf("%d clients received corrupt content", client)
}

// Corrupt content on a volume that cannot be written is not served again: the next client gets it from the upstream.
func TestCorruptContentThatCannotBeDeleted(t *testing.T) {
	t.Parallel()
	var readOnly atomic.Bool
	_, c, digests, contents := startWithImage(t, cacheserver.Options{Volume: volume.Options{Fault: func(op volume.Op, path string) error {
		if readOnly.Load() && (op == volume.OpRemove || op == volume.OpCreate || op == volume.OpRename) && !strings.Contains(path, "probe") {
			return syscall.EROFS
		}
		return nil
	}}})
	c.flipBit(t, digests[0])
	readOnly.Store(true)
	for range 3 {
		got := c.do(t, "GET", "blobs/"+digests[0])
		if got.status == http.StatusOK && bytes.Equal(got.body, contents[0]) {
			return
		}
	}
	t.Error("three requests got corrupt content")
}
