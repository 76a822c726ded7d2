// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/registry-cache/extension/pkg/cacheserver/store/layout"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

const (
	dirMode  = 0o755
	fileMode = 0o644
	// publishAttempts bounds how often a directory is created again that an eviction deletes concurrently.
	publishAttempts = 5
)

// disk writes and deletes files on the volume. A path gets its content by a rename, so it always has complete content.
type disk struct {
	fs     *volume.FS
	layout layout.Root
	reader layout.Reader
	// full is called when a write fails because the volume is full.
	full func()
	// undeleted are files of discard.
	undeleted *undeleted
}

// durability is the guarantee of a write after a power failure.
type durability bool

const (
	// durable: the content is complete and exists.
	durable durability = true
	// volatile: the content may be missing, empty or incomplete. It avoids all fsync calls.
	volatile durability = false
)

// create creates a file in the directory of partial files.
func (d *disk) create(prefix string) (_ *volume.File, err error) {
	defer func() { d.noticeFull(err) }()
	dir := d.layout.Partials()
	f, err := d.fs.Create(dir, prefix)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	if err := d.fs.MkdirAll(dir, dirMode); err != nil {
		return nil, err
	}
	return d.fs.Create(dir, prefix)
}

// write replaces the content of path.
func (d *disk) write(path string, content []byte, durability durability) error {
	return d.writeWith(path, durability, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}

// writeWith replaces the content of path by the output of the function.
func (d *disk) writeWith(path string, durability durability, write func(io.Writer) error) error {
	f, err := d.create("file-")
	if err != nil {
		return err
	}
	if err := write(f); err != nil {
		d.noticeFull(err)
		return errors.Join(err, f.Close(), d.discard(f.Name()))
	}
	if err := d.rename(f, path, durability); err != nil {
		return errors.Join(err, f.Close(), d.discard(f.Name()))
	}
	return f.Close()
}

// rename renames f to path. If durable, a power failure can no longer revert that when it returns. f stays open.
func (d *disk) rename(f *volume.File, path string, durability durability) error {
	if err := d.finish(f, durability); err != nil {
		return err
	}
	if err := d.place(f, path, durability); err != nil || !durability {
		return err
	}
	return d.syncDir(path)
}

// finish completes the file before place. If durable, it waits for an fsync.
func (d *disk) finish(f *volume.File, durability durability) (err error) {
	defer func() { d.noticeFull(err) }()
	if err := d.fs.Chmod(f.Name(), fileMode); err != nil || !durability {
		return err
	}
	return f.Sync()
}

// syncDir makes the name of a file durable.
func (d *disk) syncDir(path string) (err error) {
	defer func() { d.noticeFull(err) }()
	return d.fs.SyncDir(filepath.Dir(path))
}

// place renames a finished file to path.
func (d *disk) place(f *volume.File, path string, durability durability) (err error) {
	defer func() { d.noticeFull(err) }()
	dir := filepath.Dir(path)
	for range publishAttempts {
		if err = d.mkdirAll(dir, durability); err == nil {
			err = d.fs.Rename(f.Name(), path)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return err
}

// noticeFull requests an eviction if err is the error of a write on a full volume.
func (d *disk) noticeFull(err error) {
	if volume.IsFull(err) {
		d.full()
	}
}

// mkdirAll is FS.MkdirAll, with an fsync of the changed directories if durable.
func (d *disk) mkdirAll(dir string, durability durability) error {
	if !durability {
		return d.fs.MkdirAll(dir, dirMode)
	}
	if _, err := d.fs.Stat(dir); err == nil || errors.Is(err, volume.ErrHung) {
		return err
	}
	parent := filepath.Dir(dir)
	if parent == dir {
		return fmt.Errorf("creating %s: %w", dir, fs.ErrNotExist)
	}
	if err := d.mkdirAll(parent, durability); err != nil {
		return err
	}
	if err := d.fs.Mkdir(dir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return d.fs.SyncDir(parent)
}

// removeUpTo deletes a file, which may be missing, and its parent directories that become empty, up to root.
func (d *disk) removeUpTo(path, root string) error {
	if err := errors.Join(d.removeIfExists(path), d.removeTemporary(path)); err != nil {
		return err
	}
	d.prune(filepath.Dir(path), root)
	return nil
}

// removeTemporary deletes the temporary files "<name>.<uuid>.tmp" of a stock registry that was killed while it wrote path.
func (d *disk) removeTemporary(path string) error {
	dir, name := filepath.Split(path)
	entries, err := d.reader.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), name+".") && strings.HasSuffix(entry.Name(), ".tmp") {
			if err := d.removeIfExists(dir + entry.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// prune deletes empty directories from dir up to root, which stays. An error leaves an empty directory, which is
// harmless.
func (d *disk) prune(dir, root string) {
	for ; len(dir) > len(root); dir = filepath.Dir(dir) {
		if err := d.fs.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return
		}
	}
}
