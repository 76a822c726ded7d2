// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	dirMode  = 0o755
	fileMode = 0o644
	// maxLinkSize bounds what is read of a link, in bytes; a right one has 71.
	maxLinkSize = 256
	// publishAttempts bounds how often folders are made anew that go meanwhile.
	publishAttempts = 5
)

// create returns a new file among the partial ones.
func (s *Store) create(prefix string) (_ File, err error) {
	defer func() { s.noticeFull(err) }()
	dir := s.layout.partials()
	f, err := s.createFile(dir, prefix)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, err
	}
	return s.createFile(dir, prefix)
}

// writeFile makes path a file with the content, at once and for good.
func (s *Store) writeFile(path string, content []byte) error {
	return s.writeWith(path, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}

// writeWith makes path a file with what the function writes, at once and for good.
func (s *Store) writeWith(path string, write func(io.Writer) error) error {
	f, err := s.create("file-")
	if err != nil {
		return err
	}
	if err := write(f); err != nil {
		s.noticeFull(err)
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	if err := s.publish(f, path); err != nil {
		return errors.Join(err, f.Close(), removeIfThere(f.Name()))
	}
	return f.Close()
}

// publish moves f to path and returns when a power failure can no longer undo it. f stays open.
func (s *Store) publish(f File, path string) (err error) {
	defer func() { s.noticeFull(err) }()
	if err := os.Chmod(f.Name(), fileMode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	dir := filepath.Dir(path)
	// What Maintain finds empty may go between two of the steps.
	for range publishAttempts {
		if err = mkdirAll(dir); err == nil {
			err = os.Rename(f.Name(), path)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

// mkdirAll is os.MkdirAll that flushes the folders it changes.
func mkdirAll(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent == dir {
		return fmt.Errorf("making %s: %w", dir, fs.ErrNotExist)
	}
	if err := mkdirAll(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func readSmall(path string) (string, error) {
	content, err := readBounded(path, maxLinkSize)
	return string(content), err
}

// readBounded reads a file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, notFound(err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) > limit {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrNotFound, path, limit)
	}
	return content, nil
}

// notFound wraps ErrNotFound around the errors that say that a path is not there.
func notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}
