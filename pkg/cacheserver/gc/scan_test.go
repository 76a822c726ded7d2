// SPDX-License-Identifier: Apache-2.0

package gc

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
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

// traces returns everything that an access changes: for each path its mode, size and times of change, and for
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

func scan(t *testing.T, root string, now time.Time) *Content {
	t.Helper()
	s, err := Scan(t.Context(), openVolume(t, root, volume.Options{}), root, evict.NewLRU(week.TTL), now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// openVolume returns the file system calls on a volume until the end of the test.
func openVolume(t testing.TB, root string, o volume.Options) *volume.FS {
	t.Helper()
	files := volume.New(root, o)
	t.Cleanup(files.Close)
	return files
}

// corruptPaths returns "path: error" of the corrupt files.
func corruptPaths(s *Content) (paths []string) {
	for _, b := range s.Corrupt {
		paths = append(paths, b.Path+": "+b.Err.Error())
	}
	slices.Sort(paths)
	return paths
}

func TestScan(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := open(t, root, setup{})
	commit(t, s, repository)
	if err := s.PutManifest(repository, manifestDigest, []byte(manifest)); err != nil {
		t.Fatal(err)
	}
	if err := s.SetTag(repository, "3.13.2", manifestDigest); err != nil {
		t.Fatal(err)
	}
	write(t, root, "docker/registry/v2/repositories/other/_uploads/8f9b/data", "half")
	write(t, root, "docker/registry/v2/repositories/other/_uploads/8f9b/startedat", "2026-01-01T00:00:00Z")
	p, _, err := s.Receive(layerDigest)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.WriteAt([]byte("some"), 0); err != nil {
		t.Fatal(err)
	}
	used := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	write(t, root, usesFile, string(formatRecords([]evict.Record{{Digest: layerDigest, LastUse: used}})))
	before := traces(t, root)

	got := scan(t, root, time.Now())
	if got.Usage.FileSystem.Limit <= 0 || got.Recorded.IsZero() {
		t.Errorf("volume %+v, recorded %v", got.Usage, got.Recorded)
	}
	if broken := corruptPaths(got); broken != nil {
		t.Errorf("broken: %v", broken)
	}
	if diff := cmp.Diff([]Tag{{Repository: repository, Name: "3.13.2", Digest: manifestDigest}}, got.Tags); diff != "" {
		t.Errorf("tags: -want +got\n%s", diff)
	}
	for _, f := range got.Index.Forecast(time.Now(), week, evict.Usage{}) {
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
	if n := len(got.Index.Records()); n != 2 {
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

func TestScanAtBrokenVolumes(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 1<<20)
	for _, test := range []struct{ name, path, content, want string }{
		{"empty blob", layerFile, "", layerFile + ": the file is empty"},
		{"empty layer link", layerLink, "", layerLink + ": the link does not contain its digest"},
		{"revision link to something else", revisionLink, "sha256:" + layerHex, revisionLink + ": the link does not contain its digest"},
		{"torn tag", tagLink, "sha256:", tagLink + ": "},
		{"huge link", layerLink, long, layerLink + ": "},
		{"noise in the record", usesFile, long, usesFile + ": "},
		{"link folder without link", strings.TrimSuffix(layerLink, "link") + "x", "", layerLink + ": the directory contains no link"},
		{"tag without link", strings.TrimSuffix(tagLink, "link") + "x", "", tagLink + ": "},
		{"folder instead of content", layerFile + "/x", "", layerFile + ": not a regular file"},
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
			got := scan(t, root, time.Now().Add(2*changeTime))
			broken := corruptPaths(got)
			if len(broken) != 1 || !strings.HasPrefix(broken[0], test.want) {
				t.Errorf("broken: %q, want %q", broken, test.want)
			}
			if diff := cmp.Diff(before, traces(t, root)); diff != "" {
				t.Errorf("looking has left traces: -before +after\n%s", diff)
			}
		})
	}
}

func TestScanErrors(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	write(t, root, "file", "")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, test := range []struct {
		ctx        context.Context
		path, want string
	}{
		{t.Context(), filepath.Join(root, "missing"), "scanning the volume: directory " + root + "/missing does not exist"},
		{t.Context(), filepath.Join(root, "file"), "scanning the volume: " + root + "/file is not a directory"},
		{ended, root, "scanning the volume: context canceled"},
	} {
		if _, err := Scan(test.ctx, openVolume(t, root, volume.Options{}), test.path, evict.NewLRU(week.TTL), time.Now()); err == nil || err.Error() != test.want {
			t.Errorf("%s: %v, want %s", test.path, err, test.want)
		}
	}
	if got := corruptPaths(scan(t, root, time.Now())); !slices.Equal(got, []string{"docker/registry/v2: no registry has stored content on this volume"}) {
		t.Errorf("empty volume: %q", got)
	}
}

// A program that reads a volume ends if the volume stops responding, at any of its calls.
func TestScanOfHungVolume(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	commit(t, open(t, root, setup{}), repository)
	for _, op := range []volume.Op{volume.OpStat, volume.OpReadDir, volume.OpOpen, volume.OpRead, volume.OpStatfs} {
		t.Run(string(op), func(t *testing.T) {
			t.Parallel()
			released := make(chan struct{})
			defer close(released)
			var calls atomic.Int64
			files := openVolume(t, root, volume.Options{Timeout: 50 * time.Millisecond, Fault: func(called volume.Op, _ string) error {
				// The first call of Scan examines the root.
				if called == op && (calls.Add(1) > 1 || op != volume.OpStat) {
					<-released
				}
				return nil
			}})
			if _, err := Scan(t.Context(), files, root, evict.NewLRU(week.TTL), time.Now()); !errors.Is(err, volume.ErrHung) {
				t.Errorf("got %v, want ErrHung", err)
			}
		})
	}
}

func TestScanAtReadOnlyMount(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	commit(t, open(t, root, setup{}), repository)
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
	if got := scan(t, root, time.Now()); len(got.Index.Records()) != 1 || len(got.Corrupt) > 0 {
		t.Errorf("objects %v, broken %v", got.Index.Records(), corruptPaths(got))
	}
}

// TestScanWhileTheVolumeChanges stores and deletes the same things again and again meanwhile.
func TestScanWhileTheVolumeChanges(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := open(t, root, setup{limits: week})
	if !s.buildIndex(t.Context()) {
		t.Fatal("the volume was not indexed")
	}
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
			s.evictor.evict(ctx, time.Now, evict.Need{Bytes: 1})
		}
	})
	defer wg.Wait()
	defer cancel()
	for looks := 0; looks < 200; {
		got := scan(t, root, time.Now())
		if len(got.Index.Records()) > 0 {
			looks++
		}
		for _, b := range corruptPaths(got) {
			if !strings.HasPrefix(b, "docker/registry/v2: ") {
				t.Errorf("broken: %s", b)
			}
		}
		for _, f := range got.Index.Forecast(time.Now(), week, evict.Usage{}) {
			// A tag can be set after its manifest was deleted.
			if !f.Stored && slices.ContainsFunc(f.Links, func(l evict.Link) bool { return l.Kind != evict.Tag }) {
				t.Errorf("links without content: %+v", f)
			}
		}
	}
}

// TestScanAtNewContent looks between the content of a download and its links.
func TestScanAtNewContent(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	write(t, root, layerFile, layer)
	got := scan(t, root, time.Now())
	if len(got.Index.Records()) > 0 || len(got.Unfinished) != 1 || got.Unfinished[0].Path != layerFile || got.Unfinished[0].Size != int64(len(layer)) {
		t.Errorf("at once: objects %v, unfinished %+v", got.Index.Records(), got.Unfinished)
	}
	got = scan(t, root, time.Now().Add(2*changeTime))
	if len(got.Index.Records()) != 1 || len(got.Unfinished) > 0 {
		t.Errorf("later: objects %v, unfinished %+v", got.Index.Records(), got.Unfinished)
	}
}

// TestScanAtNewManifest has a manifest and its tag come between the walk through the revisions and that through the tags.
func TestScanAtNewManifest(t *testing.T) {
	t.Parallel()
	tag := evict.Link{Kind: evict.Tag, Repository: repository, Tag: "v1"}
	links := []evict.Link{{Kind: evict.Revision, Repository: repository}, tag}
	for _, test := range []struct {
		name string
		find func(*indexer)
	}{
		{"record of the tag", func(x *indexer) { x.Link(manifestDigest, tag, nil) }},
		{"tag", func(x *indexer) { x.Tag(manifestDigest, tag) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			v := newScanner(openVolume(t, root, volume.Options{}), root, evict.NewLRU(week.TTL), time.Now())
			x := &indexer{index: v.Index, now: v.now, findings: v}
			v.lastUse = x.lastUse
			s := open(t, root, setup{limits: week})
			if err := s.PutManifest(repository, manifestDigest, []byte(manifest)); err != nil {
				t.Fatal(err)
			}
			if err := s.SetTag(repository, "v1", manifestDigest); err != nil {
				t.Fatal(err)
			}
			test.find(x)
			v.finish()
			all := v.Index.Forecast(time.Now(), week, evict.Usage{})
			if len(all) != 1 || !all[0].Stored || all[0].Reason != "" || !slices.Equal(all[0].Links, links) {
				t.Errorf("objects %+v, want one that is stored and stays, with the links %v", all, links)
			}
			if len(v.Unfinished) > 0 || len(v.Corrupt) > 0 {
				t.Errorf("unfinished %+v, broken %v", v.Unfinished, corruptPaths(v.Content))
			}
		})
	}
}

func BenchmarkScan(b *testing.B) {
	root := b.TempDir()
	lay(b, root, benchObjects)
	for b.Loop() {
		s, err := Scan(b.Context(), openVolume(b, root, volume.Options{}), root, evict.NewLRU(week.TTL), time.Now())
		if err != nil {
			b.Fatal(err)
		}
		if got := len(s.Index.Records()); got != benchObjects {
			b.Fatalf("%d objects", got)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchObjects, "ns/object")
}
