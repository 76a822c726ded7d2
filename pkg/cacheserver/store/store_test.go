// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/cacheserver/volume/volumetest"
)

const (
	repository = "library/alpine"
	// The digests are those that sha256sum prints, so that the paths are known without this package.
	layer       = "some layer"
	layerHex    = "5cb8e097b28516b26c62e2cfe12a906c65b9e06ab52e65f1f2485d5ee696fde2"
	manifest    = `{"schemaVersion":2}`
	manifestHex = "bafebd36189ad3688b7b3915ea55d461e0bfcfbdde11e54b0a123999fb6be50f"

	layerDigest    = digest.Digest("sha256:" + layerHex)
	manifestDigest = digest.Digest("sha256:" + manifestHex)

	layerFile    = "docker/registry/v2/blobs/sha256/5c/" + layerHex + "/data"
	layerLink    = "docker/registry/v2/repositories/library/alpine/_layers/sha256/" + layerHex + "/link"
	manifestFile = "docker/registry/v2/blobs/sha256/ba/" + manifestHex + "/data"
	revisionLink = "docker/registry/v2/repositories/library/alpine/_manifests/revisions/sha256/" + manifestHex + "/link"
	tagLink      = "docker/registry/v2/repositories/library/alpine/_manifests/tags/3.13.2/current/link"
	tagIndexLink = "docker/registry/v2/repositories/library/alpine/_manifests/tags/3.13.2/index/sha256/" + manifestHex + "/link"
)

func TestWritesTheLayout(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := open(t, root, Options{})
	commit(t, s, repository, "other/repository")
	if err := s.PutManifest(repository, manifestDigest, []byte(manifest)); err != nil {
		t.Fatal(err)
	}
	if err := s.SetTag(repository, "3.13.2", manifestDigest); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		layerFile: layer,
		layerLink: "sha256:" + layerHex,
		strings.Replace(layerLink, repository, "other/repository", 1): "sha256:" + layerHex,
		manifestFile: manifest,
		revisionLink: "sha256:" + manifestHex,
		tagLink:      "sha256:" + manifestHex,
		tagIndexLink: "sha256:" + manifestHex,
	}
	if diff := cmp.Diff(want, files(t, root)); diff != "" {
		t.Errorf("files: -want +got\n%s", diff)
	}
}

func TestReadsTheLayout(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for path, content := range map[string]string{
		layerFile:    layer,
		layerLink:    "sha256:" + layerHex,
		manifestFile: manifest,
		revisionLink: "sha256:" + manifestHex,
		tagLink:      "sha256:" + manifestHex,
	} {
		write(t, root, path, content)
	}
	s := open(t, root, Options{})
	if got := readBlob(t, s, repository); got != layer {
		t.Errorf("blob: %q", got)
	}
	if got, err := s.Manifest(repository, manifestDigest); err != nil || string(got) != manifest {
		t.Errorf("manifest: %q, %v", got, err)
	}
	if got, err := s.Tag(repository, "3.13.2"); err != nil || got != manifestDigest {
		t.Errorf("tag: %q, %v", got, err)
	}
}

func TestLinksSayWhoHasWhat(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Options{})
	commit(t, s, repository)
	if err := s.PutManifest(repository, manifestDigest, []byte(manifest)); err != nil {
		t.Fatal(err)
	}
	const other = "other"
	if _, err := s.Blob(other, layerDigest); !errors.Is(err, ErrNotFound) {
		t.Errorf("blob of another repository: %v", err)
	}
	if _, err := s.Manifest(other, manifestDigest); !errors.Is(err, ErrNotFound) {
		t.Errorf("manifest of another repository: %v", err)
	}
	if _, err := s.Blob(repository, manifestDigest); !errors.Is(err, ErrNotFound) {
		t.Errorf("manifest as a blob: %v", err)
	}
	f, err := s.Content(layerDigest)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.LinkBlob(other, layerDigest); err != nil {
		t.Fatal(err)
	}
	if got := readBlob(t, s, other); got != layer {
		t.Errorf("linked blob: %q", got)
	}
}

func TestBrokenFilesAreNotFound(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, path, content string }{
		{"empty blob", layerFile, ""},
		{"empty layer link", layerLink, ""},
		{"layer link to something else", layerLink, "sha256:" + manifestHex},
		{"layer link with a line feed", layerLink, "sha256:" + layerHex + "\n"},
		{"empty manifest", manifestFile, ""},
		{"changed manifest", manifestFile, manifest + " "},
		{"cut revision link", revisionLink, "sha256:ba"},
		{"tag link without digest", tagLink, "latest"},
		{"huge tag link", tagLink, strings.Repeat("x", 1<<20)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			s := open(t, root, Options{})
			fill := func() {
				commit(t, s, repository)
				if err := s.PutManifest(repository, manifestDigest, []byte(manifest)); err != nil {
					t.Fatal(err)
				}
				if err := s.SetTag(repository, "3.13.2", manifestDigest); err != nil {
					t.Fatal(err)
				}
			}
			fill()
			write(t, root, test.path, test.content)
			var err error
			switch test.path {
			case layerFile, layerLink:
				_, err = s.Blob(repository, layerDigest)
			case manifestFile, revisionLink:
				_, err = s.Manifest(repository, manifestDigest)
			case tagLink:
				_, err = s.Tag(repository, "3.13.2")
			}
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("reading: %v, want ErrNotFound", err)
			}
			// Another write repairs it.
			fill()
			if got := files(t, root)[test.path]; got == test.content {
				t.Errorf("%s is still broken", test.path)
			}
		})
	}
}

func TestEmptyBlob(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Options{})
	p, _, err := s.Receive(EmptyDigest)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Commit(EmptyDigest, 0, []string{repository}), p.Close()); err != nil {
		t.Fatal(err)
	}
	f, err := s.Blob(repository, EmptyDigest)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func TestWrongContentIsNotCommitted(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := open(t, root, Options{})
	for _, content := range []string{"", layer[:4], layer + "x", strings.ToUpper(layer)} {
		p, _, err := s.Receive(layerDigest)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.WriteAt([]byte(content), 0); err != nil {
			t.Fatal(err)
		}
		if err := p.Commit(digest.FromString(content), int64(len(content)), []string{repository}); !errors.Is(err, ErrDigestMismatch) {
			t.Errorf("committing %q: %v", content, err)
		}
		if err := errors.Join(p.Discard(), p.Close()); err != nil {
			t.Error(err)
		}
	}
	if err := s.PutManifest(repository, manifestDigest, []byte(manifest+" ")); !errors.Is(err, ErrDigestMismatch) {
		t.Errorf("manifest: %v", err)
	}
	if got := files(t, root); len(got) > 0 {
		t.Errorf("left behind: %v", got)
	}
}

func TestPartialIsReadableWhileItGrows(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Options{})
	p, _, err := s.Receive(layerDigest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.WriteAt([]byte(layer[:4]), 0); err != nil {
		t.Fatal(err)
	}
	read := func(want string) {
		t.Helper()
		b := make([]byte, len(want))
		if _, err := p.ReadAt(b, 0); err != nil || string(b) != want {
			t.Errorf("got %q, %v, want %q", b, err, want)
		}
	}
	read(layer[:4])
	if _, err := p.WriteAt([]byte(layer[4:]), 4); err != nil {
		t.Fatal(err)
	}
	if err := p.Commit(layerDigest, int64(len(layer)), []string{repository}); err != nil {
		t.Fatal(err)
	}
	read(layer)
	if err := p.Discard(); err != nil {
		t.Fatal(err)
	}
	read(layer)
	if got := readBlob(t, s, repository); got != layer {
		t.Errorf("after Discard of a committed blob: %q", got)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestConcurrentCommits(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := open(t, root, Options{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { commit(t, s, repository) })
	}
	wg.Wait()
	want := map[string]string{layerFile: layer, layerLink: "sha256:" + layerHex}
	if diff := cmp.Diff(want, files(t, root)); diff != "" {
		t.Errorf("files: -want +got\n%s", diff)
	}
}

func TestTags(t *testing.T) {
	t.Parallel()
	var created atomic.Int64
	s := open(t, t.TempDir(), Options{Volume: volumetest.New(t, volumetest.Count(&created, volume.OpCreate))})
	set := func(d digest.Digest) {
		t.Helper()
		if err := s.SetTag(repository, "v1", d); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Tag(repository, "v1"); err != nil || got != d {
			t.Errorf("tag: %q, %v, want %s", got, err, d)
		}
	}
	set(layerDigest)
	before := created.Load()
	if before == 0 {
		t.Error("setting a tag creates no file, so this shows nothing")
	}
	set(layerDigest)
	if n := created.Load() - before; n > 0 {
		t.Errorf("setting a tag to what it is wrote %d files", n)
	}
	set(manifestDigest)
	for range 2 {
		if err := s.RemoveTag(repository, "v1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Tag(repository, "v1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed tag: %v", err)
	}
}

func TestOpenRemovesLeftovers(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := open(t, root, Options{})
	p, _, err := s.Receive(layerDigest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.WriteAt([]byte(layer[:4]), 0); err != nil {
		t.Fatal(err)
	}
	if got := files(t, root); len(got) != 1 {
		t.Fatalf("a partial download should be one file: %v", got)
	}
	if err := p.Close(); err != nil { // without Discard, as if the process had ended
		t.Fatal(err)
	}
	open(t, root, Options{})
	if got := files(t, root); len(got) > 0 {
		t.Errorf("left behind: %v", got)
	}
}

func TestFailingVolume(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		fault volumetest.Fault
		want  error
	}{
		{"no file can be made", volumetest.Fail(syscall.EROFS, volume.OpCreate), syscall.EROFS},
		{"full", volumetest.Fail(syscall.ENOSPC, volume.OpWrite), syscall.ENOSPC},
		{"full in the middle", volumetest.After(1, volumetest.Fail(syscall.ENOSPC, volume.OpWrite)), syscall.ENOSPC},
		{"cannot be flushed", volumetest.Fail(syscall.EIO, volume.OpSync), syscall.EIO},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			s := open(t, root, Options{Volume: volumetest.New(t, test.fault)})
			if err := tryCommit(s, repository); !errors.Is(err, test.want) {
				t.Errorf("blob: %v, want %v", err, test.want)
			}
			if got := files(t, root); len(got) > 0 {
				t.Errorf("left behind: %v", got)
			}
			// Manifests, tags and further links are written without fsync.
			want := test.want
			if errors.Is(want, syscall.EIO) {
				want = nil
			}
			for name, err := range map[string]error{
				"manifest": s.PutManifest(repository, manifestDigest, []byte(manifest)),
				"tag":      s.SetTag(repository, "v1", manifestDigest),
				"link":     s.LinkBlob("other/repository", layerDigest),
			} {
				if !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", name, err, want)
				}
			}
			if got := files(t, root); (len(got) > 0) != (want == nil) {
				t.Errorf("after the manifest and the tag: %v", got)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "volume")
	s := open(t, root, Options{})
	if err := s.Check(); err != nil {
		t.Errorf("new store: %v", err)
	}
	commit(t, s, repository)
	if err := s.Check(); err != nil {
		t.Errorf("used store: %v", err)
	}
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed store: %v", err)
	}
}

func open(t *testing.T, root string, o Options) *Store {
	t.Helper()
	s, err := Open(root, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func commit(t *testing.T, s *Store, repositories ...string) {
	t.Helper()
	if err := tryCommit(s, repositories...); err != nil {
		t.Error(err)
	}
}

func tryCommit(s *Store, repositories ...string) error {
	return commitContent(s, layer, repositories...)
}

// commitContent stores a blob with two writes.
func commitContent(s *Store, content string, repositories ...string) (err error) {
	d := digest.FromString(content)
	p, _, err := s.Receive(d)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Discard(), p.Close()) }()
	if _, err := p.WriteAt([]byte(content[:4]), 0); err != nil {
		return err
	}
	if _, err := p.WriteAt([]byte(content[4:]), 4); err != nil {
		return err
	}
	return p.Commit(d, int64(len(content)), repositories)
}

func readBlob(t *testing.T, s *Store, repository string) string {
	t.Helper()
	f, err := s.Blob(repository, layerDigest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	content, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func write(t *testing.T, root, path, content string) {
	t.Helper()
	path = filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// files returns the content of all files below root by their path in it.
func files(t *testing.T, root string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		relative, relErr := filepath.Rel(root, path)
		found[relative] = string(content)
		return errors.Join(err, relErr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A request does not wait for the removal of an object with many links: it is a cache miss.
func TestReadsDoNotWaitForRemoval(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Options{})
	commit(t, s, repository)
	if _, ok := s.index.Take(layerDigest, evict.Expired); !ok {
		t.Fatal("the layer is not in the index")
	}
	opened := make(chan error, 1)
	go func() {
		_, err := s.Blob(repository, layerDigest)
		opened <- err
	}()
	select {
	case err := <-opened:
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the request waits for the removal")
	}
	s.index.RemovalFailed(layerDigest)
	if got := readBlob(t, s, repository); got != layer {
		t.Errorf("after an unsuccessful removal: %q", got)
	}
}

// Writes of content that is being removed wait a limited time. Then the pull continues without the volume.
func TestWritesDuringRemoval(t *testing.T) {
	t.Parallel()
	for name, write := range map[string]func(s *Store) error{
		"manifest": func(s *Store) error { return s.PutManifest(repository, manifestDigest, []byte(manifest)) },
		"tag":      func(s *Store) error { return s.SetTag(repository, "v1", manifestDigest) },
		"link":     func(s *Store) error { return s.LinkBlob(repository, manifestDigest) },
		"blob": func(s *Store) error {
			i, _, err := s.Receive(manifestDigest)
			if err != nil {
				return err
			}
			return errors.Join(i.Discard(), i.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				s := open(t, root, Options{})
				if err := s.PutManifest(repository, manifestDigest, []byte(manifest)); err != nil {
					t.Fatal(err)
				}
				if _, ok := s.index.Take(manifestDigest, evict.Corrupt); !ok {
					t.Fatal("the removal did not begin")
				}
				began := time.Now()
				if err := write(s); !errors.Is(err, errRemoving) || time.Since(began) != pinTime {
					t.Errorf("%v after %s", err, time.Since(began))
				}
				s.index.RemovalDone(manifestDigest)
				if err := write(s); err != nil {
					t.Errorf("after the removal: %v", err)
				}
			})
		})
	}
}
