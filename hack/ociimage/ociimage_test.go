// SPDX-License-Identifier: Apache-2.0

package ociimage

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// program writes a file with the content and returns its path.
func program(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func build(t *testing.T, source string) v1.Image {
	t.Helper()
	img, err := Build(Config{
		Files: []File{
			{Path: "/usr/local/bin/program", Mode: 0o755, Source: source},
			{Path: "/etc/program/config", Content: []byte("a: b\n")},
		},
		Entrypoint: []string{"/usr/local/bin/program"},
		User:       "65532:65532",
		Labels:     map[string]string{"a": "b"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestBuildCreatesParentDirectories(t *testing.T) {
	t.Parallel()
	img := build(t, program(t, "#!"))
	reader := mutate.Extract(img)
	defer reader.Close()
	type entry struct {
		Mode    int64
		Content string
	}
	got := map[string]entry{}
	archive := tar.NewReader(reader)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		got[header.Name] = entry{header.Mode, string(content)}
	}
	want := map[string]entry{
		"etc": {0o755, ""}, "etc/program": {0o755, ""}, "etc/program/config": {0o644, "a: b\n"},
		"usr": {0o755, ""}, "usr/local": {0o755, ""}, "usr/local/bin": {0o755, ""}, "usr/local/bin/program": {0o755, "#!"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Config.User != "65532:65532" || config.Config.Labels["a"] != "b" || config.OS != "linux" {
		t.Errorf("unexpected config %+v", config)
	}
}

func TestDigestDependsOnContentOnly(t *testing.T) {
	t.Parallel()
	digest := func(content string) string {
		d, err := build(t, program(t, content)).Digest()
		if err != nil {
			t.Fatal(err)
		}
		return d.String()
	}
	if a, b := digest("same"), digest("same"); a != b {
		t.Errorf("digests of the same content in two directories: %s and %s, want equal", a, b)
	}
	if a, b := digest("one"), digest("two"); a == b {
		t.Errorf("different contents have the same digest %s", a)
	}
}

func TestBuildRejectsRelativePath(t *testing.T) {
	t.Parallel()
	if _, err := Build(Config{Files: []File{{Path: "bin/program"}}}); err == nil {
		t.Error("no error for a relative path")
	}
}

func TestWriteArchive(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "image.tar")
	const reference = "example.com/team/program:v1"
	source := program(t, "#!")
	img := build(t, source)
	if err := WriteArchive(path, map[string]v1.Image{reference: img}); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(reference)
	if err != nil {
		t.Fatal(err)
	}
	read, err := tarball.ImageFromPath(path, &tag)
	if err != nil {
		t.Fatal(err)
	}
	want, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := read.ConfigName(); err != nil || got != want {
		t.Errorf("image in the archive: %s (error %v), want %s", got, err, want)
	}

	if err := os.Remove(source); err != nil {
		t.Fatal(err)
	}
	if err := WriteArchive(path+"2", map[string]v1.Image{reference: img}); err == nil {
		t.Error("no error for a deleted source file")
	}
	if left, err := filepath.Glob(path + "2*"); err != nil || len(left) > 0 {
		t.Errorf("files left after a failed write: %v (error %v)", left, err)
	}
	if err := WriteArchive(path, map[string]v1.Image{"no tag": img}); err == nil {
		t.Error("no error for an invalid reference")
	}
}
