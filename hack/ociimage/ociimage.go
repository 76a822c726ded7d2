// SPDX-License-Identifier: Apache-2.0

// Package ociimage assembles OCI images from files and writes them as archives, without a container engine.
//
// Builds are reproducible: time stamps are zero and all files belong to root, so equal inputs have equal digests.
package ociimage

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// File is one regular file of an image.
type File struct {
	// Path is the absolute path in the image. Missing parent directories are created with mode 0755.
	Path string
	// Mode are the permission bits; zero means 0644.
	Mode fs.FileMode
	// Source is the path of a local file with the content.
	Source string
	// Content is the content of the file if Source is empty.
	Content []byte
}

// Config describes an image.
type Config struct {
	// LayerTars are paths of uncompressed tar files. Each becomes a layer, the first one is the lowest.
	LayerTars []string
	// Files become one layer above LayerTars. Without files there is no such layer.
	Files []File
	// Entrypoint and Cmd are the exec-form command.
	Entrypoint, Cmd []string
	// Env are NAME=value pairs in addition to PATH.
	Env []string
	// User is the numeric "uid" or "uid:gid"; empty means root.
	User string
	// WorkingDir is the absolute working directory; empty means "/".
	WorkingDir string
	// Labels are the image's labels.
	Labels map[string]string
}

// Build returns the image that cfg describes, for Linux and the architecture of this machine. Source files and tar
// files are also read later, when the image is written. They must exist, unchanged, until then.
func Build(cfg Config) (v1.Image, error) {
	img := empty.Image
	var layers []v1.Layer
	for _, tarPath := range cfg.LayerTars {
		layer, err := tarball.LayerFromFile(tarPath)
		if err != nil {
			return nil, fmt.Errorf("reading layer %s: %w", tarPath, err)
		}
		layers = append(layers, layer)
	}
	if len(cfg.Files) > 0 {
		files := slices.Clone(cfg.Files)
		slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return streamTar(files), nil })
		if err != nil {
			return nil, fmt.Errorf("building layer: %w", err)
		}
		layers = append(layers, layer)
	}
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		return nil, fmt.Errorf("appending layers: %w", err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("reading image config: %w", err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	file.Config.Entrypoint, file.Config.Cmd = cfg.Entrypoint, cfg.Cmd
	file.Config.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, cfg.Env...)
	file.Config.User, file.Config.WorkingDir, file.Config.Labels = cfg.User, cfg.WorkingDir, cfg.Labels
	return mutate.ConfigFile(img, file)
}

// WriteArchive writes the images, keyed by reference ("host/repository:tag"), as a docker archive for
// "ctr images import", "podman load" and "docker load". The archive is renamed to path when it is complete.
func WriteArchive(path string, images map[string]v1.Image) (err error) {
	refs := make(map[name.Reference]v1.Image, len(images))
	for s, img := range images {
		ref, err := name.ParseReference(s, name.StrictValidation)
		if err != nil {
			return fmt.Errorf("image reference %q: %w", s, err)
		}
		refs[ref] = img
	}
	partial := path + ".partial"
	f, err := os.Create(partial)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(partial))
		}
	}()
	if err := tarball.MultiRefWrite(refs, f); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(partial, path)
}

// streamTar returns a tar archive of the files. The caller closes it.
func streamTar(files []File) io.ReadCloser {
	r, w := io.Pipe()
	go func() { w.CloseWithError(writeTar(w, files)) }()
	return r
}

// writeTar writes the files with all their parent directories. A directory is written before the files in it.
func writeTar(out io.Writer, files []File) error {
	tw := tar.NewWriter(out)
	written := map[string]bool{"/": true}
	var mkdir func(dir string) error
	mkdir = func(dir string) error {
		if written[dir] {
			return nil
		}
		if err := mkdir(path.Dir(dir)); err != nil {
			return err
		}
		written[dir] = true
		return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir[1:] + "/", Mode: 0o755, ModTime: time.Unix(0, 0)})
	}
	for _, file := range files {
		if !path.IsAbs(file.Path) {
			return fmt.Errorf("file %q: path must be absolute", file.Path)
		}
		if err := mkdir(path.Dir(path.Clean(file.Path))); err != nil {
			return err
		}
		if err := writeFile(tw, file); err != nil {
			return fmt.Errorf("adding %s: %w", file.Path, err)
		}
	}
	return tw.Close()
}

func writeFile(tw *tar.Writer, file File) error {
	var content io.Reader = bytes.NewReader(file.Content)
	size := int64(len(file.Content))
	if file.Source != "" {
		f, err := os.Open(file.Source)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		content, size = f, info.Size()
	}
	mode := file.Mode.Perm()
	if mode == 0 {
		mode = 0o644
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: path.Clean(file.Path)[1:], Mode: int64(mode), Size: size, ModTime: time.Unix(0, 0)}
	if err := tw.WriteHeader(header); err != nil {
		return err
	}
	_, err := io.Copy(tw, content)
	return err
}
