// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// file is a regular file or a symbolic link of an image.
type file struct {
	// path is absolute.
	path string
	mode fs.FileMode
	// source is the file on this machine to read; content is used where it is empty.
	source  string
	content []byte
	// link is the target of a symbolic link; the other fields do not matter then.
	link string
}

// folder lists the regular files below dir, which appear below target with the mode that mode gives them, in lexical
// order. Anything else but folders is an error.
func folder(dir, target string, mode func(imagePath string, info fs.FileInfo) fs.FileMode) ([]file, error) {
	var files []file
	err := filepath.WalkDir(dir, func(source string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is no regular file", source)
		}
		relative, err := filepath.Rel(dir, source)
		if err != nil {
			return err
		}
		imagePath := path.Join(target, filepath.ToSlash(relative))
		files = append(files, file{path: imagePath, mode: mode(imagePath, info), source: source})
		return nil
	})
	return files, err
}

// writeFiles adds the files to the archive, owned by root and without a time. Missing parents are left to the reader,
// because in an image they may be links.
func writeFiles(out *tar.Writer, files []file) error {
	for _, f := range files {
		if err := writeFile(out, f); err != nil {
			return fmt.Errorf("adding %s: %w", f.path, err)
		}
	}
	return nil
}

func writeFile(out *tar.Writer, f file) error {
	header := &tar.Header{Name: strings.TrimPrefix(f.path, "/"), ModTime: time.Unix(0, 0)}
	if f.link != "" {
		header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, f.link, 0o777
		return out.WriteHeader(header)
	}
	header.Typeflag, header.Mode, header.Size = tar.TypeReg, int64(f.mode.Perm()), int64(len(f.content))
	if f.source == "" {
		if err := out.WriteHeader(header); err != nil {
			return err
		}
		_, err := out.Write(f.content)
		return err
	}
	source, err := os.Open(f.source)
	if err != nil {
		return err
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return err
	}
	header.Size = info.Size()
	if err := out.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(out, source)
	return err
}

// stream returns an archive of the files. The reader must be closed; it ends with the error of a file that cannot be
// read.
func stream(files []file) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		out := tar.NewWriter(w)
		err := writeFiles(out, files)
		if err == nil {
			err = out.Close()
		}
		w.CloseWithError(err)
	}()
	return r
}

// replace writes a file that appears under its name only when it is complete. Until then it has a name of its own, which
// is always the same, so that the next run replaces what an interrupted one left.
func replace(name string, write func(io.Writer) error) (err error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	partial, err := os.Create(name + ".partial")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(partial.Name()))
		}
	}()
	err = write(partial)
	if err := errors.Join(err, partial.Close()); err != nil {
		return err
	}
	return os.Rename(partial.Name(), name)
}
