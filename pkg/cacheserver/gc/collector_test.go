// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/cacheserver/volume/volumetest"
)

func TestWhatIsUsedStays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		s := open(t, root, setup{limits: week})
		stop := run(t, s)
		used, unused := sized(t, s, 1, 10), sized(t, s, 2, 10)
		if err := s.PutManifest(repository, manifestDigest, []byte(manifest)); err != nil {
			t.Fatal(err)
		}
		if err := s.SetTag(repository, "v1", manifestDigest); err != nil {
			t.Fatal(err)
		}
		for range 6 {
			time.Sleep(day)
			use(t, s, used)
		}
		if !has(t, s, unused) {
			t.Error("deleted before its time")
		}
		held, err := s.Blob(repository, unused)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * day)
		if !has(t, s, used) {
			t.Error("what was used 3 days ago was deleted")
		}
		if _, err := s.Tag(repository, "v1"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("tag of a manifest that was not used: %v", err)
		}
		time.Sleep(30 * day)
		if !has(t, s, unused) {
			t.Error("deleted while it is read")
		}
		if has(t, s, used) {
			t.Error("kept without use")
		}
		if err := held.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(8 * day)
		synctest.Wait()
		stop()
		got := files(t, root)
		maps.DeleteFunc(got, func(path, _ string) bool { return path == usesFile || path == stateFile })
		if len(got) > 0 {
			t.Errorf("left behind: %v", got)
		}
		for _, path := range []string{"blobs/sha256", "repositories"} {
			if entries, err := os.ReadDir(filepath.Join(root, "docker/registry/v2", path)); err != nil || len(entries) > 0 {
				t.Errorf("folders left below %s: %v, %v", path, entries, err)
			}
		}
	})
}

// A request for content that is being deleted does not wait for the deletion.
func TestReadersDoNotWaitForDeletions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		removing := make(chan struct{}, 10)
		s := open(t, t.TempDir(), setup{limits: week, fault: func(op volume.Op, path string) error {
			if op == volume.OpRemove && filepath.Base(path) == "data" {
				removing <- struct{}{}
				time.Sleep(time.Second)
			}
			return nil
		}})
		stop := run(t, s)
		defer stop()
		d := sized(t, s, 1, 10)
		<-removing
		began := time.Now()
		if _, err := s.Content(d); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("what is deleted: %v", err)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("the request waited for %s", took)
		}
	})
}

// Content without a link cannot be served, and is deleted.
func TestContentWithoutLinkIsDeleted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var failing atomic.Bool
		s := open(t, t.TempDir(), setup{
			limits:     week,
			fileSystem: func() (Space, error) { return Space{Bytes: evict.Amount{Limit: 1000}}, nil },
			fault: volumetest.While(&failing, func(op volume.Op, path string) error {
				if op == volume.OpRename && filepath.Base(path) == "link" {
					return syscall.EIO
				}
				return nil
			}),
		})
		stop := run(t, s)
		defer stop()
		d := sized(t, s, 1, 10)
		failing.Store(true)
		if err := s.LinkBlob("library/other", d); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		time.Sleep(day)
		if !has(t, s, d) {
			t.Fatal("what one repository has was deleted")
		}
		if err := tryCommit(s, repository); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		if _, err := os.Stat(s.layout.Data(layerDigest)); err != nil {
			t.Fatalf("so this shows nothing: %v", err)
		}
		time.Sleep(checkInterval)
		synctest.Wait()
		if _, err := os.Stat(s.layout.Data(layerDigest)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("it is still there: %v", err)
		}
	})
}

func TestNothingIsDeletedWithoutTTL(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		write(t, root, "docker/registry/v2/repositories/library/alpine/_uploads/x/data", "half")
		write(t, root, tagIndexLink, manifestDigest.String())
		write(t, root, layerFile, layer)
		write(t, root, revisionLink, manifestDigest.String())
		before := files(t, root)
		s := open(t, root, setup{limits: evict.Limits{HighWatermark: 90, LowWatermark: 80}, fileSystem: newFakeVolume(root, 1).measure})
		stop := run(t, s)
		s.Full()
		time.Sleep(30 * day)
		synctest.Wait()
		stop()
		after := files(t, root)
		delete(after, usesFile)
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("files: -before +after\n%s", diff)
		}
	})
}

func TestWatermarks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		v := newFakeVolume(root, 1000)
		s := open(t, root, setup{limits: week, fileSystem: v.measure})
		defer run(t, s)()
		var all []digest.Digest
		for n := range 8 {
			all = append(all, sized(t, s, n, 100))
			time.Sleep(time.Minute)
		}
		use(t, s, all[0])
		held, err := s.Blob(repository, all[1])
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		stored := func() (n []int) {
			for i, d := range all {
				if has(t, s, d) {
					n = append(n, i)
				}
			}
			return n
		}
		if diff := cmp.Diff([]int{0, 1, 2, 3, 4, 5, 6, 7}, stored()); diff != "" {
			t.Errorf("at 80 %%: -want +got\n%s", diff)
		}
		all = append(all, sized(t, s, 8, 100))
		synctest.Wait() // it does not wait for the next check
		if diff := cmp.Diff([]int{0, 1, 3, 4, 5, 6, 7, 8}, stored()); diff != "" {
			t.Errorf("at 90 %%: -want +got\n%s", diff)
		}
		v.extra.Store(100)
		time.Sleep(checkInterval + settleTime)
		synctest.Wait()
		if diff := cmp.Diff([]int{0, 1, 4, 5, 6, 7, 8}[:], stored()[:]); diff != "" {
			t.Errorf("with 10 %% used by others: -want +got\n%s", diff)
		}
		// A larger volume has room for more.
		v.limit.Store(2000)
		time.Sleep(checkInterval)
		for n := range 7 {
			all = append(all, sized(t, s, 9+n, 100))
		}
		time.Sleep(checkInterval)
		synctest.Wait()
		if got := len(stored()); got != 14 {
			t.Errorf("after growing: %d objects, want 14", got)
		}
	})
}

func TestFullVolumeIsFreedAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		v := newFakeVolume(root, 1000)
		var full atomic.Bool
		fault := volumetest.While(&full, volumetest.After(1, volumetest.Fail(syscall.ENOSPC, volume.OpWrite)))
		s := open(t, root, setup{limits: week, fileSystem: v.measure, fault: fault})
		defer run(t, s)()
		oldest := sized(t, s, 1, 100)
		time.Sleep(time.Second)
		for n := range 7 {
			sized(t, s, 2+n, 100)
		}
		v.extra.Store(99)
		time.Sleep(checkInterval)
		if !has(t, s, oldest) {
			t.Fatal("deleted below the high watermark")
		}
		full.Store(true)
		if err := tryCommit(s, repository); !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		synctest.Wait()
		if has(t, s, oldest) {
			t.Error("nothing was deleted when the volume was full")
		}
	})
}

func TestLastUsesSurvive(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		spoil func(content string) string
		used  bool // whether the use is still known
	}{
		{"whole", func(c string) string { return c }, true},
		{"empty", func(string) string { return "" }, false},
		{"noise", func(string) string { return strings.Repeat("\xff\x00", 100_000) }, false},
		{"cut", func(c string) string { return c[:len(c)-3] }, false},
		{"cut date", func(c string) string { return c[:len(c)-12] }, false},
		{"noise around", func(c string) string { return strings.Repeat("x", 10_000) + "\n" + c + "sha256:00" }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				root := t.TempDir()
				s := open(t, root, setup{limits: week})
				stop := run(t, s)
				d := sized(t, s, 1, 10)
				first := time.Now()
				time.Sleep(6 * day)
				use(t, s, d)
				time.Sleep(saveInterval)
				synctest.Wait()
				content := files(t, root)[usesFile]
				stop()
				write(t, root, usesFile, test.spoil(content))
				// Looking at the files has changed the times of their use.
				if err := os.Chtimes(s.layout.Data(d), first, first); err != nil {
					t.Fatal(err)
				}

				s = open(t, root, setup{limits: week})
				time.Sleep(3 * day)
				stop = run(t, s)
				stop()
				if got := has(t, s, d); got != test.used {
					t.Errorf("9 days after it was written and 3 after its use: still there %t, want %t", got, test.used)
				}
			})
		})
	}
}

func TestUseWritesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var created atomic.Int64
		s := open(t, t.TempDir(), setup{limits: week, fault: volumetest.Count(&created, volume.OpCreate)})
		d := sized(t, s, 1, 10)
		defer run(t, s)()
		before := created.Load()
		for range 100 {
			use(t, s, d)
		}
		if n := created.Load() - before; n > 0 {
			t.Errorf("100 uses wrote %d files", n)
		}
		time.Sleep(2 * saveInterval)
		if n := created.Load() - before; n > 0 {
			t.Errorf("10 minutes without use wrote %d files", n)
		}
		use(t, s, d)
		time.Sleep(2 * saveInterval)
		synctest.Wait()
		if n := created.Load() - before; n != 2 { // for this server, and for a stock registry
			t.Errorf("a use and 10 minutes wrote %d files", n)
		}
	})
}

// TestAdoption starts with the volume of a stock registry.
func TestAdoption(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		good := map[string]string{
			layerFile:    layer,
			layerLink:    layerDigest.String(),
			manifestFile: manifest,
			revisionLink: manifestDigest.String(),
			tagLink:      manifestDigest.String(),
			tagIndexLink: manifestDigest.String(),
		}
		for path, content := range good {
			write(t, root, path, content)
		}
		const other = "docker/registry/v2/repositories/a/b/c/"
		gone := strings.Repeat("ab", 32)
		for path, content := range map[string]string{
			other + "_layers/sha256/" + gone + "/link":                                       "sha256:" + gone,
			other + "_manifests/revisions/sha256/" + gone + "/link":                          "sha256:" + gone,
			other + "_manifests/tags/v1/current/link":                                        "sha256:" + gone,
			other + "_manifests/tags/v1/index/sha256/" + gone + "/link":                      "sha256:" + gone,
			other + "_manifests/tags/v2/current/link":                                        "",
			other + "_uploads/8f9b1c/data":                                                   "half",
			other + "_uploads/8f9b1c/hashstates/sha256/4":                                    "x",
			"docker/registry/v2/repositories/library/alpine/_uploads/1/startedat":            "2026-01-01T00:00:00Z",
			strings.Replace(tagIndexLink, manifestHex, gone, 1):                              "sha256:" + gone,
			"docker/registry/v2/blobs/sha256/ab/" + gone[:62] + "cd" + "/data":               "nobody has it",
			"registry-cache/partial/" + gone + "-1":                                          "half",
			stateFile:                                                                        "",
			stateFile + ".77-88.tmp":                                                         "{",
			strings.TrimSuffix(other, "c/") + "d/_layers/sha256/" + gone + "/link.77-88.tmp": "",
			strings.Replace(tagIndexLink, manifestHex, gone, 1) + ".77-88.tmp":               "sha256:",
			"docker/registry/v2/blobs/sha256/ab/" + gone[:62] + "ef" + "/data.77-88.tmp":     "half a manifest",
		} {
			write(t, root, path, content)
		}
		for _, path := range []string{
			"docker/registry/v2/blobs/sha256/ab/" + gone,
			other + "_layers/sha256/" + gone[:62] + "cd", // content without a link was about to be linked
		} {
			if err := os.MkdirAll(filepath.Join(root, path), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		s := open(t, root, setup{limits: week})
		stop := run(t, s)
		if got := readBlob(t, s, repository); got != layer {
			t.Errorf("blob: %q", got)
		}
		stop()
		got := files(t, root)
		delete(got, usesFile)
		if parsed := parseState(t, got[stateFile]); len(parsed) != 2 {
			t.Errorf("left for a stock registry: %v", parsed)
		}
		delete(got, stateFile)
		if diff := cmp.Diff(good, got); diff != "" {
			t.Errorf("files: -want +got\n%s", diff)
		}
		for _, path := range []string{"docker/registry/v2/repositories/a", "docker/registry/v2/blobs/sha256/ab"} {
			if _, err := os.Stat(filepath.Join(root, path)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %v", path, err)
			}
		}
	})
}

// TestInterruptedRemoval ends an eviction after each of its steps, as the end of the process or a failing volume would.
func TestInterruptedRemoval(t *testing.T) {
	t.Parallel()
	for cut := 0; ; cut++ {
		steps := 0
		synctest.Test(t, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, root, setup{limits: week, fault: func(op volume.Op, path string) error {
				if op != volume.OpRemove || filepath.Base(path) != "link" && filepath.Base(path) != "data" {
					return nil
				}
				if steps++; steps > cut {
					return syscall.EIO
				}
				return nil
			}})
			stop := run(t, s)
			fill := func(s *rig) {
				commit(t, s, repository, "other/repository")
				if err := s.PutManifest(repository, manifestDigest, []byte(manifest)); err != nil {
					t.Fatal(err)
				}
				for _, tag := range []string{"v1", "v2", "v3"} {
					if err := s.SetTag(repository, tag, manifestDigest); err != nil {
						t.Fatal(err)
					}
				}
				if err := s.SetTag(repository, "v3", layerDigest); err != nil {
					t.Fatal(err)
				}
			}
			fill(s)
			whole := files(t, root)
			time.Sleep(week.TTL + checkInterval)
			synctest.Wait()
			if steps <= cut {
				stop()
				return
			}
			left := files(t, root)
			for path, content := range left {
				if !strings.HasSuffix(path, "/link") || strings.Contains(path, "/index/") {
					continue
				}
				d := digest.Digest(content)
				if _, ok := left[strings.TrimPrefix(s.layout.Data(d), root+"/")]; !ok {
					t.Errorf("after %d steps %s names content that is gone", cut, path)
				}
				revision := strings.TrimPrefix(s.layout.Link(evict.Link{Kind: evict.Revision, Repository: repository}, d), root+"/")
				if _, ok := left[revision]; strings.Contains(path, "/tags/") && d == manifestDigest && !ok {
					t.Errorf("after %d steps %s names a manifest that is gone", cut, path)
				}
			}
			// The next process uses the remaining content, and deletes unusable files.
			stop()
			s = open(t, root, setup{limits: week})
			stop = run(t, s)
			fill(s)
			again := files(t, root)
			for _, own := range []string{usesFile, stateFile} {
				delete(whole, own)
				delete(again, own)
			}
			if diff := cmp.Diff(whole, again); diff != "" {
				t.Errorf("filled again after %d steps: -want +got\n%s", cut, diff)
			}
			time.Sleep(week.TTL + 2*checkInterval)
			stop()
			for path := range files(t, root) {
				if path != usesFile && path != stateFile {
					t.Errorf("after %d steps and another process: %s", cut, path)
				}
			}
		})
		if steps <= cut {
			if cut < 8 {
				t.Errorf("a removal has %d steps only", cut)
			}
			return
		}
	}
}

// A directory that cannot be read for a moment hides the links of valid content, which must not be deleted. A directory
// that stays unreadable must not prevent garbage collection forever.
func TestUnreadableDirectoryAtTheStart(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		failures int
		kept     bool
	}{
		{"once", 1, true},
		{"always", 1 << 30, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			root := t.TempDir()
			layers := filepath.Join(root, filepath.Dir(filepath.Dir(layerLink)))
			var failures atomic.Int64
			s := open(t, root, setup{limits: week, fault: func(op volume.Op, path string) error {
				if op == volume.OpReadDir && path == layers && failures.Add(-1) >= 0 {
					return syscall.EIO
				}
				return nil
			}})
			if err := tryCommit(s, repository); err != nil {
				t.Fatal(err)
			}
			// Another process has stored it, so that only the scan finds it.
			s = open(t, root, setup{limits: week, fault: func(op volume.Op, path string) error {
				if op == volume.OpReadDir && path == layers && failures.Add(-1) >= 0 {
					return syscall.EIO
				}
				return nil
			}})
			failures.Store(int64(test.failures))
			stop := run(t, s)
			defer stop()
			time.Sleep(2 * maxScans * scanRetryInterval)
			synctest.Wait()
			_, err := os.Stat(filepath.Join(root, layerFile))
			if kept := err == nil; kept != test.kept {
				t.Errorf("%s: kept %t, want %t: %v", test.name, kept, test.kept, err)
			}
		})
	}
}

// Files of downloads that ended while the volume did not respond do not occupy it until the next start.
func TestFilesAreDeletedAfterHang(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var hangs atomic.Bool
		s := open(t, t.TempDir(), setup{limits: week, monitored: true, fault: volumetest.While(&hangs, func(op volume.Op, _ string) error {
			if op == volume.OpRemove {
				time.Sleep(2 * time.Minute) // longer than the deadline of the call
			}
			return nil
		})})
		defer run(t, s)()
		var downloads []*store.Incoming
		for n := range 3 {
			i, _, err := s.Receive(digest.FromString(fmt.Sprint(n)))
			if err != nil {
				t.Fatal(err)
			}
			downloads = append(downloads, i)
		}
		hangs.Store(true)
		for _, i := range downloads {
			if err := i.Discard(); !errors.Is(err, volume.ErrHung) {
				t.Errorf("got %v", err)
			}
			if err := i.Close(); err != nil {
				t.Error(err)
			}
		}
		hangs.Store(false)
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		entries, err := os.ReadDir(s.layout.Partials())
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) > 0 {
			t.Errorf("%d files are left", len(entries))
		}
	})
}
