// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/store/layout"
)

// receive returns a partial download with the first bytes of the layer.
func receive(t *testing.T, s *Store, content string) *Incoming {
	t.Helper()
	i, _, err := s.Receive(layerDigest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.WriteAt([]byte(content), 0); err != nil {
		t.Fatal(err)
	}
	return i
}

// progressOf is the progress of a partial layer with that many bytes.
func progressOf(n int64) Progress {
	return Progress{Digest: layerDigest, Size: int64(len(layer)), Spans: [][2]int64{{0, n}}, Repositories: []string{repository}}
}

// The bytes of a download are kept while the stored file may be corrupt.
func TestPartialOfSuspectContent(t *testing.T) {
	t.Parallel()
	for _, suspect := range []bool{false, true} {
		s := open(t, t.TempDir(), Options{})
		i := receive(t, s, layer[:4])
		commit(t, s, repository) // by another process that shares the volume
		content, err := s.Blob(repository, layerDigest)
		if err != nil {
			t.Fatal(err)
		}
		if suspect {
			if err := content.Suspect(syscall.EIO); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(content.Close(), i.Keep(progressOf(4)), i.Close()); err != nil {
			t.Fatal(err)
		}
		want := map[bool]int64{false: 0, true: 4}[suspect]
		if got := s.Maintain(noCollector{}).PartialBytes(); got != want {
			t.Errorf("suspect %t: %d bytes of partial downloads, want %d", suspect, got, want)
		}
	}
}

func TestKeptBlobIsContinued(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		root := t.TempDir()
		s := open(t, root, Options{})
		i := receive(t, s, layer[:4])
		if err := errors.Join(i.Keep(progressOf(4)), i.Close()); err != nil {
			t.Fatal(err)
		}
		if restart {
			s = open(t, root, Options{})
		}
		partialBytes := s.Maintain(noCollector{}).PartialBytes
		if got := partialBytes(); got != 4 {
			t.Errorf("restart %t: %d bytes in partial downloads, want 4", restart, got)
		}
		i, progress, err := s.Receive(layerDigest)
		if err != nil {
			t.Fatal(err)
		}
		if got := partialBytes(); got != 0 {
			t.Errorf("restart %t: %d bytes in partial downloads while the only one continues", restart, got)
		}
		if diff := cmp.Diff(progressOf(4), progress); diff != "" {
			t.Errorf("restart %t: -want +got\n%s", restart, diff)
		}
		if _, err := i.WriteAt([]byte(layer[4:]), 4); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(i.Commit(layerDigest, int64(len(layer)), []string{repository}), i.Discard(), i.Close()); err != nil {
			t.Fatal(err)
		}
		if got := readBlob(t, s, repository); got != layer {
			t.Errorf("restart %t: %q", restart, got)
		}
		if got := partialFiles(t, root); len(got) > 0 {
			t.Errorf("restart %t: left behind: %v", restart, got)
		}
	}
}

func partialFiles(t *testing.T, root string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(layout.Root(root).Partials(), "*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A process that is killed leaves the latest record.
func TestRecordedBlobIsContinuedAfterAKill(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	i := receive(t, open(t, root, Options{}), layer[:6])
	if err := errors.Join(i.Record(progressOf(4)), i.file.Close()); err != nil {
		t.Fatal(err)
	}
	i, progress, err := open(t, root, Options{}).Receive(layerDigest)
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	if diff := cmp.Diff(progressOf(4), progress); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// A power failure can lose bytes that were written without fsync, so the download begins anew after a restart of the machine,
// unless the process has ended regularly before.
func TestPartialOfAnotherBoot(t *testing.T) {
	t.Parallel()
	if currentBoot() == "" {
		t.Error("the kernel has no boot ID")
	}
	keep := func(_ *Store, i *Incoming) error { return errors.Join(i.Keep(progressOf(4)), i.Close()) }
	for name, test := range map[string]struct {
		end  func(*Store, *Incoming) error
		want int // spans
	}{
		"crashed": {func(_ *Store, i *Incoming) error { return errors.Join(i.Record(progressOf(4)), i.file.Close()) }, 0},
		"kept":    {keep, 0},
		"closed": {func(s *Store, i *Incoming) error {
			defer s.Close()
			return keep(s, i)
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			s := open(t, root, Options{Boot: "earlier"})
			if err := test.end(s, receive(t, s, layer[:4])); err != nil {
				t.Fatal(err)
			}
			i, progress, err := open(t, root, Options{}).Receive(layerDigest)
			if err != nil {
				t.Fatal(err)
			}
			if len(progress.Spans) != test.want {
				t.Errorf("progress %+v, want %d spans", progress, test.want)
			}
			if err := errors.Join(i.Discard(), i.Close()); err != nil {
				t.Fatal(err)
			}
			if got := partialFiles(t, root); len(got) > 0 {
				t.Errorf("left behind: %v", got)
			}
		})
	}
}

// Without the ID of the same boot, the machine may have been restarted since a record was written.
func TestBootOfRecord(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Options{})
	path := filepath.Join(string(s.layout), "record")
	for _, test := range []struct {
		written string
		synced  bool
		boot    string
		want    error
	}{
		{"this", false, "this", nil},
		{"this", false, "later", errOtherBoot},
		{"this", true, "later", nil},
		{"", false, "this", errOtherBoot}, // written without an ID
		{"", true, "this", nil},
		{"this", false, currentBoot(), errOtherBoot},
	} {
		content, err := record{Progress: progressOf(4), Boot: test.written, Synced: test.synced}.encode()
		if err != nil {
			t.Fatal(err)
		}
		overwrite(t, path, string(content))
		progress, err := readRecord(s.reader.FS, path, test.boot)
		if !errors.Is(err, test.want) {
			t.Errorf("%+v: %v, want %v", test, err, test.want)
		}
		want := Progress{}
		if test.want == nil {
			want = progressOf(4)
		}
		if diff := cmp.Diff(want, progress); diff != "" {
			t.Errorf("%+v: -want +got\n%s", test, diff)
		}
	}
}

// Files that cannot be continued are deleted, and the download begins anew.
func TestUnusablePartials(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(t *testing.T, path string){
		"without record": func(t *testing.T, path string) { remove(t, path+recordSuffix) },
		"without file":   func(t *testing.T, path string) { remove(t, path) },
		"cut record":     func(t *testing.T, path string) { overwrite(t, path+recordSuffix, `{"digest":`) },
		"other digest": func(t *testing.T, path string) {
			overwrite(t, path+recordSuffix, `{"digest":"`+digest.FromString("other").String()+`","size":8,"spans":[[0,4]],"boot":"`+currentBoot()+`"}`)
		},
		"overlapping spans": func(t *testing.T, path string) {
			overwrite(t, path+recordSuffix, `{"digest":"`+layerDigest.String()+`","size":8,"spans":[[0,4],[2,6]]}`)
		},
		"spans behind the size": func(t *testing.T, path string) {
			overwrite(t, path+recordSuffix, `{"digest":"`+layerDigest.String()+`","size":3,"spans":[[0,4]]}`)
		},
		"short file": func(t *testing.T, path string) { overwrite(t, path, "ab") },
		"old": func(t *testing.T, path string) {
			then := time.Now().Add(-keepPartial - time.Hour)
			if err := os.Chtimes(path, then, then); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			i := receive(t, open(t, root, Options{}), layer[:4])
			path := i.file.Name()
			if err := errors.Join(i.Keep(progressOf(4)), i.Close()); err != nil {
				t.Fatal(err)
			}
			spoil(t, path)
			i, progress, err := open(t, root, Options{}).Receive(layerDigest)
			if err != nil {
				t.Fatal(err)
			}
			if progress.Spans != nil || progress.Size != -1 {
				t.Errorf("progress %+v, want none", progress)
			}
			if err := errors.Join(i.Discard(), i.Close()); err != nil {
				t.Fatal(err)
			}
			if name == "other digest" {
				return // it belongs to the other blob
			}
			if got := partialFiles(t, root); len(got) > 0 {
				t.Errorf("left behind: %v", got)
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func overwrite(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Two processes on one volume neither delete nor continue each other's downloads.
func TestPartialOfAnotherProcess(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	running := receive(t, open(t, root, Options{}), layer[:4])
	defer running.Close()
	if err := running.Record(progressOf(4)); err != nil {
		t.Fatal(err)
	}
	other := open(t, root, Options{})
	if other.partials.drop() {
		t.Error("another process deletes a running download if the volume is full")
	}
	i, progress, err := other.Receive(layerDigest)
	if err != nil {
		t.Fatal(err)
	}
	if progress.Spans != nil {
		t.Errorf("progress %+v of a running download", progress)
	}
	if err := errors.Join(i.Discard(), i.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := running.WriteAt([]byte(layer[4:]), 4); err != nil {
		t.Fatal(err)
	}
	if err := running.Commit(layerDigest, int64(len(layer)), []string{repository}); err != nil {
		t.Fatal(err)
	}
}

// A reader has a position of its own, also after the blob was stored.
func TestOpenIncoming(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Options{})
	i := receive(t, s, layer)
	defer i.Close()
	for _, stored := range []bool{false, true} {
		if stored {
			if err := i.Commit(layerDigest, int64(len(layer)), []string{repository}); err != nil {
				t.Fatal(err)
			}
		}
		f, err := i.Open()
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(layer))
		if n, err := f.Read(got); err != nil || string(got[:n]) != layer {
			t.Errorf("stored %t: %q, %v", stored, got[:n], err)
		}
		f.Close()
	}
}

// Two downloads of one blob can end in any order, because slow readers delay the end of the first one. The larger part is kept.
func TestSecondPartialOfOneBlob(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ first, second, want int64 }{
		"first is larger":  {5, 4, 5},
		"second is larger": {4, 5, 5},
		"same size":        {4, 4, 4},
		"second is stored": {4, int64(len(layer)), 0},
	} {
		for _, secondEndsFirst := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, ends first %t", name, secondEndsFirst), func(t *testing.T) {
				t.Parallel()
				root := t.TempDir()
				s := open(t, root, Options{})
				first := receive(t, s, layer[:test.first])
				if err := first.Keep(progressOf(test.first)); err != nil {
					t.Fatal(err)
				}
				second := receive(t, s, layer[:test.second])
				end := func() error {
					if test.want == 0 {
						return second.Commit(layerDigest, int64(len(layer)), []string{repository})
					}
					return second.Keep(progressOf(test.second))
				}
				var err error
				if secondEndsFirst {
					err = errors.Join(end(), second.Close(), first.Close())
				} else {
					err = errors.Join(first.Close(), end(), second.Close())
				}
				if err != nil {
					t.Fatal(err)
				}
				want := 2 // the file and its record
				if test.want == 0 {
					want = 0
				}
				if got := partialFiles(t, root); len(got) != want {
					t.Errorf("the files are %v, want %d", got, want)
				}
				if got := s.partials.total(); got != test.want {
					t.Errorf("%d bytes are kept, want %d", got, test.want)
				}
			})
		}
	}
}

// A file can have bytes behind the end of the blob, if the upstream has first stated another size.
func TestCommitCutsFile(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Options{})
	i := receive(t, s, layer+" and more")
	if err := errors.Join(i.Commit(layerDigest, int64(len(layer)), []string{repository}), i.Close()); err != nil {
		t.Fatal(err)
	}
	if got := readBlob(t, s, repository); got != layer {
		t.Errorf("got %q", got)
	}
	if size, _ := s.index.Size(layerDigest); size != int64(len(layer)) {
		t.Errorf("%d bytes are indexed", size)
	}
}
