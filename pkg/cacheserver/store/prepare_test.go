// SPDX-License-Identifier: Apache-2.0

package store

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

// problemPaths returns the paths of the problems.
func problemPaths(s *Store) (paths []string) {
	for _, p := range s.Problems() {
		paths = append(paths, p.Path)
	}
	return paths
}

// TestOpenOnDamagedVolumes opens volumes on which stored content is readable, but something else is wrong.
func TestOpenOnDamagedVolumes(t *testing.T) {
	t.Parallel()
	readOnly := func(op volume.Op, _ string) error {
		switch op {
		case volume.OpMkdir, volume.OpChmod, volume.OpCreate, volume.OpWrite, volume.OpRename, volume.OpRemove:
			return syscall.EROFS
		}
		return nil
	}
	foreign := func(op volume.Op, path string) error {
		if op != volume.OpStat && op != volume.OpOpen && strings.Contains(path, "registry-cache") {
			return syscall.EACCES
		}
		return nil
	}
	for _, test := range []struct {
		name  string
		spoil map[string]string // files, created before Open
		fault func(op volume.Op, path string) error
		want  []string // paths of the problems
		fails bool     // content cannot be stored
	}{
		{name: "intact"},
		{name: "leftovers", spoil: map[string]string{"registry-cache/partial/x-1": "half"}},
		{name: "read-only with leftovers", spoil: map[string]string{"registry-cache/partial/x-1": "half", "registry-cache/partial/x-2": ""},
			fault: readOnly, want: []string{"registry-cache/partial/x-1", "registry-cache/partial/x-2"}, fails: true},
		{name: "leftover that was deleted concurrently", spoil: map[string]string{"registry-cache/partial/x-1": "half"},
			fault: func(op volume.Op, path string) error {
				if op == volume.OpRemove && filepath.Base(path) == "x-1" {
					return fs.ErrNotExist
				}
				return nil
			}},
		{name: "directory in partial", spoil: map[string]string{"registry-cache/partial/dir/x": ""}, want: []string{"registry-cache/partial/dir"}},
		{name: "partial is a file", spoil: map[string]string{"registry-cache/partial": ""}, want: []string{"registry-cache/partial"}, fails: true},
		{name: "registry-cache is a file", spoil: map[string]string{"registry-cache": ""}, want: []string{"registry-cache", "registry-cache/partial"}, fails: true},
		{name: "unexpected files", spoil: map[string]string{"registry-cache/notes.txt": "x", "registry-cache/old/x": ""},
			want: []string{"registry-cache/notes.txt", "registry-cache/old"}},
		{name: "another owner", fault: foreign, want: []string{"registry-cache", "registry-cache/partial"}, fails: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			for path, content := range map[string]string{layerFile: layer, layerLink: layerDigest.String()} {
				write(t, root, path, content)
			}
			for path, content := range test.spoil {
				write(t, root, path, content)
			}
			files := volume.New(root, volume.Options{Fault: test.fault})
			t.Cleanup(files.Close)
			s := open(t, root, Options{Volume: files})
			if got := readBlob(t, s, repository); got != layer {
				t.Errorf("stored blob: %q", got)
			}
			if got := problemPaths(s); !slices.Equal(got, test.want) {
				t.Errorf("problems: %v, want %v", s.Problems(), test.want)
			}
			for _, p := range s.Problems() {
				if p.Message == "" || strings.Contains(p.Message, root) {
					t.Errorf("message of %s: %q", p.Path, p.Message)
				}
			}
			err := s.PutManifest(repository, manifestDigest, []byte(manifest))
			if (err != nil) != test.fails {
				t.Errorf("storing a manifest: %v", err)
			}
		})
	}
}

// The number of recorded problems is bounded.
func TestProblemsAreBounded(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for i := range 3 * maxProblems {
		write(t, root, filepath.Join("registry-cache/partial", string(rune('A'+i)), "x"), "")
	}
	if got := open(t, root, Options{}).Problems(); len(got) != maxProblems+1 || !strings.HasSuffix(got[maxProblems].Message, "more problems") {
		t.Errorf("%d problems: %v", len(got), got)
	}
}

func TestOpenRequiresAnAbsolutePath(t *testing.T) {
	t.Parallel()
	if _, err := Open("relative", Options{}); err == nil {
		t.Error("a relative path was accepted")
	}
}

// A root that cannot be created is a problem, and Check fails.
func TestRootThatCannotBeCreated(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s := open(t, filepath.Join(file, "root"), Options{})
	if got := problemPaths(s); !slices.Equal(got, []string{"."}) {
		t.Errorf("problems: %v", s.Problems())
	}
	if s.Check() == nil {
		t.Error("the check succeeds")
	}
}
