// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

// traces returns what could tell that somebody was here: for each path its mode, size and times of change, and for
// content also the time of its last reading, which may count as a use.
func traces(t *testing.T, root string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		stat := info.Sys().(*syscall.Stat_t)
		found[path] = fmt.Sprint(info.Mode(), stat.Ino, stat.Size, stat.Mtim, stat.Ctim)
		if filepath.Base(path) == "data" && info.Mode().IsRegular() {
			found[path] += fmt.Sprint(" ", stat.Atim)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func look(t *testing.T, root string, now time.Time) *Survey {
	t.Helper()
	s, err := Look(t.Context(), root, now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// brokenPaths returns "path: error" of what is broken.
func brokenPaths(s *Survey) (paths []string) {
	for _, b := range s.Broken {
		paths = append(paths, b.Path+": "+b.Err.Error())
	}
	slices.Sort(paths)
	return paths
}

func TestLook(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := open(t, root, Options{})
	commit(t, s, repository)
	if err := s.PutManifest(repository, manifestDigest, []byte(manifest)); err != nil {
		t.Fatal(err)
	}
	if err := s.SetTag(repository, "3.13.2", manifestDigest); err != nil {
		t.Fatal(err)
	}
	write(t, root, "docker/registry/v2/repositories/other/_uploads/8f9b/data", "half")
	write(t, root, "docker/registry/v2/repositories/other/_uploads/8f9b/startedat", "2026-01-01T00:00:00Z")
	p, err := s.Create(layerDigest)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Write([]byte("some")); err != nil {
		t.Fatal(err)
	}
	used := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	write(t, root, usesFile, string(formatUses([]evict.Use{{Digest: layerDigest, LastUse: used}})))
	before := traces(t, root)

	got := look(t, root, time.Now())
	if got.Volume.Limit <= 0 || got.Recorded.IsZero() {
		t.Errorf("volume %+v, recorded %v", got.Volume, got.Recorded)
	}
	if broken := brokenPaths(got); broken != nil {
		t.Errorf("broken: %v", broken)
	}
	if diff := cmp.Diff([]Tag{{Repository: repository, Name: "3.13.2", Digest: manifestDigest}}, got.Tags); diff != "" {
		t.Errorf("tags: -want +got\n%s", diff)
	}
	for _, f := range got.Index.Forecast(time.Now(), week, evict.Volume{}) {
		info, err := os.Stat(filepath.Join(root, got.Path(f.Digest)))
		if err != nil || f.Size != info.Size() || !f.Stored {
			t.Errorf("%+v, %v", f, err)
		}
		for _, l := range f.Links {
			if _, err := os.Stat(filepath.Join(root, got.LinkPath(f.Digest, l))); err != nil {
				t.Error(err)
			}
		}
		if want := map[digest.Digest]int{layerDigest: 1, manifestDigest: 2}[f.Digest]; len(f.Links) != want {
			t.Errorf("%s has the links %v", f.Digest, f.Links)
		}
		if f.Digest == layerDigest && !f.LastUse.Equal(used) {
			t.Errorf("last use of the layer: %v, want the recorded one", f.LastUse)
		}
	}
	if n := len(got.Index.Uses()); n != 2 {
		t.Errorf("%d objects", n)
	}
	if content, err := got.Manifest(manifestDigest); err != nil || string(content) != manifest {
		t.Errorf("manifest: %q, %v", content, err)
	}
	if diff := cmp.Diff(before, traces(t, root)); diff != "" {
		t.Errorf("looking has left traces: -before +after\n%s", diff)
	}
	if len(got.Unfinished) != 2 {
		t.Fatalf("unfinished: %+v", got.Unfinished)
	}
	own, foreign := got.Unfinished[0], got.Unfinished[1]
	if own.Digest != layerDigest || own.Size != 4 || own.Repository != "" || own.Written.IsZero() {
		t.Errorf("unfinished: %+v", own)
	}
	if foreign.Path != "docker/registry/v2/repositories/other/_uploads/8f9b" || foreign.Size != 4 || foreign.Repository != "other" || foreign.Written.IsZero() {
		t.Errorf("unfinished: %+v", foreign)
	}
}

func TestLookAtBrokenVolumes(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 1<<20)
	for _, test := range []struct{ name, path, content, want string }{
		{"empty blob", layerFile, "", layerFile + ": the file is empty"},
		{"empty layer link", layerLink, "", layerLink + ": the link names something else"},
		{"revision link to something else", revisionLink, "sha256:" + layerHex, revisionLink + ": the link names something else"},
		{"torn tag", tagLink, "sha256:", tagLink + ": "},
		{"huge link", layerLink, long, layerLink + ": "},
		{"noise in the record", usesFile, long, usesFile + ": "},
		{"link folder without link", strings.TrimSuffix(layerLink, "link") + "x", "", layerLink + ": the folder has no link in it"},
		{"tag without link", strings.TrimSuffix(tagLink, "link") + "x", "", tagLink + ": "},
		{"folder instead of content", layerFile + "/x", "", layerFile + ": it is not a file"},
		{"file instead of a folder", "docker/registry/v2/repositories/library/alpine/_layers/sha256", "", "docker/registry/v2/repositories/library/alpine/_layers/sha256: not a directory"},
		{"other things", "docker/registry/v2/blobs/README", "x", "docker/registry/v2/blobs/sha256/5d: not a directory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			for path, content := range map[string]string{
				layerFile: layer, layerLink: layerDigest.String(),
				manifestFile: manifest, revisionLink: manifestDigest.String(),
				tagLink: manifestDigest.String(), tagIndexLink: manifestDigest.String(),
			} {
				switch {
				case strings.HasPrefix(test.path, path+"/"), filepath.Dir(path) == filepath.Dir(test.path), strings.HasPrefix(path, test.path+"/"):
				default:
					write(t, root, path, content)
				}
			}
			write(t, root, test.path, test.content)
			if test.name == "other things" {
				write(t, root, "docker/registry/v2/blobs/sha256/5d", "x")
			}
			before := traces(t, root)
			got := look(t, root, time.Now().Add(2*changeTime))
			broken := brokenPaths(got)
			if len(broken) != 1 || !strings.HasPrefix(broken[0], test.want) {
				t.Errorf("broken: %q, want %q", broken, test.want)
			}
			if diff := cmp.Diff(before, traces(t, root)); diff != "" {
				t.Errorf("looking has left traces: -before +after\n%s", diff)
			}
		})
	}
}

func TestLookErrors(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	write(t, root, "file", "")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, test := range []struct {
		ctx        context.Context
		path, want string
	}{
		{t.Context(), filepath.Join(root, "missing"), "surveying the volume: there is no folder " + root + "/missing"},
		{t.Context(), filepath.Join(root, "file"), "surveying the volume: " + root + "/file is not a folder"},
		{ended, root, "surveying the volume: context canceled"},
	} {
		if _, err := Look(test.ctx, test.path, time.Now()); err == nil || err.Error() != test.want {
			t.Errorf("%s: %v, want %s", test.path, err, test.want)
		}
	}
	if got := brokenPaths(look(t, root, time.Now())); !slices.Equal(got, []string{"docker/registry/v2: no registry has stored anything here"}) {
		t.Errorf("empty volume: %q", got)
	}
}

func TestLookAtReadOnlyMount(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	commit(t, open(t, root, Options{}), repository)
	err := syscall.Mount(root, root, "", syscall.MS_BIND, "")
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		t.Skipf("only root can mount: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(root, 0); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	if err := syscall.Mount("", root, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "x"), nil, 0o644); !errors.Is(err, syscall.EROFS) {
		t.Fatalf("writing: %v", err)
	}
	if got := look(t, root, time.Now()); len(got.Index.Uses()) != 1 || len(got.Broken) > 0 {
		t.Errorf("objects %v, broken %v", got.Index.Uses(), brokenPaths(got))
	}
}

// TestLookWhileTheVolumeChanges stores and deletes the same things again and again meanwhile.
func TestLookWhileTheVolumeChanges(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := open(t, root, Options{Policy: week})
	if err := s.walk(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.index.Complete()
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		for ctx.Err() == nil {
			commit(t, s, repository, "other/repository")
			if err := s.PutManifest(repository, manifestDigest, []byte(manifest)); err != nil {
				t.Error(err)
			}
			if err := s.SetTag(repository, "v1", manifestDigest); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Go(func() {
		for ctx.Err() == nil {
			s.evict(ctx, 1)
		}
	})
	defer wg.Wait()
	defer cancel()
	for looks := 0; looks < 200; {
		got := look(t, root, time.Now())
		if len(got.Index.Uses()) > 0 {
			looks++
		}
		for _, b := range brokenPaths(got) {
			if !strings.HasPrefix(b, "docker/registry/v2: ") {
				t.Errorf("broken: %s", b)
			}
		}
		for _, f := range got.Index.Forecast(time.Now(), week, evict.Volume{}) {
			// A tag can be set after its manifest was deleted.
			if !f.Stored && slices.ContainsFunc(f.Links, func(l evict.Link) bool { return l.Kind != evict.Tag }) {
				t.Errorf("links without content: %+v", f)
			}
		}
	}
}

// TestLookAtNewContent looks between the content of a download and its links.
func TestLookAtNewContent(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	write(t, root, layerFile, layer)
	got := look(t, root, time.Now())
	if len(got.Index.Uses()) > 0 || len(got.Unfinished) != 1 || got.Unfinished[0].Path != layerFile || got.Unfinished[0].Size != int64(len(layer)) {
		t.Errorf("at once: objects %v, unfinished %+v", got.Index.Uses(), got.Unfinished)
	}
	got = look(t, root, time.Now().Add(2*changeTime))
	if len(got.Index.Uses()) != 1 || len(got.Unfinished) > 0 {
		t.Errorf("later: objects %v, unfinished %+v", got.Index.Uses(), got.Unfinished)
	}
}

// TestLookAtNewManifest has a manifest and its tag come between the walk through the revisions and that through the tags.
func TestLookAtNewManifest(t *testing.T) {
	t.Parallel()
	tag := evict.Link{Kind: evict.Tag, Repository: repository, Tag: "v1"}
	links := []evict.Link{tag, {Kind: evict.Revision, Repository: repository}}
	for _, test := range []struct {
		name string
		tell func(*surveyor)
	}{
		{"record of the tag", func(v *surveyor) { v.link(manifestDigest, tag) }},
		{"tag", func(v *surveyor) { v.tag(manifestDigest, tag) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			v := newSurveyor(root, time.Now())
			s := open(t, root, Options{Policy: week})
			if err := s.PutManifest(repository, manifestDigest, []byte(manifest)); err != nil {
				t.Fatal(err)
			}
			if err := s.SetTag(repository, "v1", manifestDigest); err != nil {
				t.Fatal(err)
			}
			test.tell(v)
			v.fill()
			all := v.Index.Forecast(time.Now(), week, evict.Volume{})
			if len(all) != 1 || !all[0].Stored || all[0].Reason != "" || !slices.Equal(all[0].Links, links) {
				t.Errorf("objects %+v, want one that is stored and stays, with the links %v", all, links)
			}
			if len(v.Unfinished) > 0 || len(v.Broken) > 0 {
				t.Errorf("unfinished %+v, broken %v", v.Unfinished, brokenPaths(v.Survey))
			}
		})
	}
}

func BenchmarkLook(b *testing.B) {
	root := b.TempDir()
	lay(b, root, benchObjects)
	for b.Loop() {
		s, err := Look(b.Context(), root, time.Now())
		if err != nil {
			b.Fatal(err)
		}
		if got := len(s.Index.Uses()); got != benchObjects {
			b.Fatalf("%d objects", got)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchObjects, "ns/object")
}
