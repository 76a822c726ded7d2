// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/cacheserver/volume/volumetest"
)

// Only a volume that is full, or fails, makes a reservation fail. Other errors are no problem of the volume.
func TestReserveErrors(t *testing.T) {
	t.Parallel()
	for injected, want := range map[error]bool{
		nil: true, syscall.EINVAL: true, syscall.EPERM: true, syscall.ENODEV: true, syscall.ENOSYS: true, syscall.EOPNOTSUPP: true, syscall.ESPIPE: true,
		syscall.ENOSPC: false, syscall.EDQUOT: false, syscall.EIO: false, syscall.ESTALE: false, syscall.EROFS: false,
	} {
		t.Run(fmt.Sprint(injected), func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			files := volume.New(root, volume.Options{Fault: func(op volume.Op, _ string) error {
				if op == volume.OpAllocate {
					return injected
				}
				return nil
			}})
			t.Cleanup(files.Close)
			p, _, err := open(t, root, Options{Volume: files}).Receive(layerDigest)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			err = p.Reserve(t.Context(), 4096)
			if want && err != nil || !want && !errors.Is(err, injected) {
				t.Errorf("got %v", err)
			}
			if health := files.Health(); (health.State == volume.OK) != want {
				t.Errorf("the volume is %+v", health)
			}
		})
	}
}

// allocated returns the bytes that a file occupies on the file system.
func allocated(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// A partial download occupies the space of the bytes that it has, also after a crash, and is resumed with them.
func TestPartialReleasesUnwrittenSpace(t *testing.T) {
	t.Parallel()
	const size, part = 8 << 20, 64 << 10
	content := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	d := digest.FromBytes(content)
	progress := Progress{Digest: d, Size: size, Spans: [][2]int64{{0, part}, {4 << 20, 4<<20 + part}}, Repositories: []string{repository}}
	for name, end := range map[string]func(*Incoming) error{
		"kept":    func(i *Incoming) error { return errors.Join(i.Keep(progress), i.Close()) },
		"crashed": func(i *Incoming) error { return errors.Join(i.Record(progress), i.file.Close()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			s := open(t, root, Options{})
			i, _, err := s.Receive(d)
			if err != nil {
				t.Fatal(err)
			}
			path := i.file.Name()
			if err := i.Reserve(t.Context(), size); err != nil {
				t.Fatal(err)
			}
			if allocated(t, path) < size {
				t.Skip("the file system of the test cannot reserve space")
			}
			for _, span := range progress.Spans {
				if _, err := i.WriteAt(content[span[0]:span[1]], span[0]); err != nil {
					t.Fatal(err)
				}
			}
			// Bytes that are not in the progress, for example of a connection that was replaced.
			if _, err := i.WriteAt(content[6<<20:6<<20+part], 6<<20); err != nil {
				t.Fatal(err)
			}
			if err := end(i); err != nil {
				t.Fatal(err)
			}
			if name == "crashed" {
				s = open(t, root, Options{})
			}
			accounted := s.Maintain(noCollector{}).PartialBytes()
			if got := allocated(t, path); accounted != 2*part || got < accounted || got > accounted+part {
				t.Errorf("the partial download occupies %d bytes, and %d of the size of the cache", got, accounted)
			}

			i, resumed, err := s.Receive(d)
			if err != nil {
				t.Fatal(err)
			}
			defer i.Close()
			if diff := cmp.Diff(progress, resumed); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
			if err := i.Reserve(t.Context(), size); err != nil {
				t.Fatal(err)
			}
			if got := allocated(t, path); got < size {
				t.Errorf("%d bytes are reserved, want %d", got, size)
			}
			for _, span := range [][2]int64{{part, 4 << 20}, {4<<20 + part, size}} {
				if _, err := i.WriteAt(content[span[0]:span[1]], span[0]); err != nil {
					t.Fatal(err)
				}
			}
			got := make([]byte, size)
			if _, err := i.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
				t.Errorf("the resumed download has other content, %v", err)
			}
		})
	}
}

// A file whose space cannot be released is not kept: a truncation that blocks in the kernel could take effect during the next
// download.
func TestKeepOnFailingVolume(t *testing.T) {
	t.Parallel()
	for _, op := range []volume.Op{volume.OpTruncate, volume.OpAllocate} {
		for name, want := range map[string]error{"fails": syscall.EIO, "hangs": volume.ErrHung} {
			t.Run(string(op)+" "+name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					hang := make(chan struct{})
					s, root := openOn(t, volume.Options{Fault: func(called volume.Op, _ string) error {
						switch {
						case called != op:
							return nil
						case name == "hangs":
							<-hang
							return nil
						}
						return want
					}})
					i := receive(t, s, layer)
					if err := i.Keep(withGap()); !errors.Is(err, want) {
						t.Errorf("keeping: %v", err)
					}
					close(hang)
					synctest.Wait()
					if err := i.Close(); err != nil {
						t.Error(err)
					}
					i, resumed, err := s.Receive(layerDigest)
					if err != nil {
						t.Fatal(err)
					}
					defer i.Close()
					if len(resumed.Spans) > 0 {
						t.Errorf("the file is resumed: %+v", resumed)
					}
					if left := len(partialFiles(t, root)); name == "fails" && left > 1 {
						t.Errorf("%d files, want that of the new download only", left)
					}
				})
			})
		}
	}
}

// A crash must not leave a record with bytes that were released before.
func TestKeepRecordsBeforeItReleases(t *testing.T) {
	t.Parallel()
	var released atomic.Int64
	s, _ := openOn(t, volume.Options{Fault: func(op volume.Op, path string) error {
		if op != volume.OpTruncate && op != volume.OpAllocate {
			return nil
		}
		released.Add(1)
		content, err := os.ReadFile(path + recordSuffix)
		if err != nil {
			return err
		}
		if !strings.Contains(string(content), `"spans":[[0,4],[6,8]]`) {
			t.Errorf("%s with the record %s", op, content)
		}
		return nil
	}})
	i := receive(t, s, layer)
	if err := errors.Join(i.Record(progressOf(10)), i.Keep(withGap()), i.Close()); err != nil {
		t.Fatal(err)
	}
	if released.Load() != 2 {
		t.Errorf("%d calls, want a hole and a truncation", released.Load())
	}
}

// withGap is the progress of a partial layer that lacks bytes in the middle.
func withGap() Progress {
	p := progressOf(4)
	p.Spans = append(p.Spans, [2]int64{6, 8})
	return p
}

// Space that cannot be released in the middle of a file does not end its download.
func TestKeepWithoutHoles(t *testing.T) {
	t.Parallel()
	for _, injected := range []error{syscall.EOPNOTSUPP, syscall.ENODEV, syscall.EINVAL, syscall.EPERM} {
		t.Run(injected.Error(), func(t *testing.T) {
			t.Parallel()
			s := open(t, t.TempDir(), Options{Volume: volumetest.New(t, volumetest.Fail(injected, volume.OpAllocate))})
			i := receive(t, s, layer)
			if err := errors.Join(i.Keep(withGap()), i.Close()); err != nil {
				t.Fatal(err)
			}
			i, resumed, err := s.Receive(layerDigest)
			if err != nil {
				t.Fatal(err)
			}
			defer i.Close()
			if diff := cmp.Diff(withGap(), resumed); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

// Reserving does not change the size of the file.
func TestAllocate(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Options{})
	f, err := s.create("x")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := allocate(f, 4096); err != nil {
		t.Error(err)
	}
	if _, err := io.WriteString(f, "content"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100)
	n, err := f.ReadAt(got, 0)
	if err != io.EOF || string(got[:n]) != "content" {
		t.Errorf("the file has %s and %v", strconv.Quote(string(got[:n])), err)
	}
}
