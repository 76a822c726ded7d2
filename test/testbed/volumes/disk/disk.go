// SPDX-License-Identifier: Apache-2.0

// Package disk keeps the bytes of volumes: sparse files with an XFS file system, in one folder of a node.
//
// A disk limits what can be written to it to its size, as a cloud's volume does. It takes from the machine only what
// is written; a machine whose own disk is full makes writes to all disks fail with EIO.
package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/registry-cache/extension/test/testbed/volumes/loop"
)

const (
	suffix        = ".img"
	partialSuffix = ".img.partial"
)

// ErrInUse tells that a file system is still mounted from a disk.
var ErrInUse = errors.New("disk is in use")

// validName are the names of PersistentVolumes (DNS subdomains), and nothing that leads out of the folder.
var validName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?$`)

// Folder is the folder with the disks of one node. Its methods may be called concurrently for different disks.
type Folder struct{ path string }

// Open returns the folder at path, made if it is missing.
func Open(path string) (*Folder, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	return &Folder{path: path}, nil
}

// Path returns the path of the disk with the given name, "<folder>/<name>.img". An invalid name is an error; whether
// the disk exists is not looked at.
func (f *Folder) Path(name string) (string, error) {
	if !validName.MatchString(name) || strings.Contains(name, "..") {
		return "", fmt.Errorf("%q is not the name of a volume: it must be a DNS subdomain", name)
	}
	return filepath.Join(f.path, name+suffix), nil
}

// Create makes a disk of size bytes, as Size returned it, with an empty file system. A disk that has this size
// already is left as it is, one of another size is an error.
func (f *Folder) Create(ctx context.Context, name string, size int64) (err error) {
	path, err := f.Path(name)
	if err != nil {
		return err
	}
	switch existing, err := f.Size(name); {
	case err == nil && existing == size:
		return nil
	case err == nil:
		return fmt.Errorf("creating disk %s of %d bytes: it exists with %d bytes", name, size, existing)
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	// What has its final name has a file system, so a run that was cut off cannot leave half a disk.
	partial := filepath.Join(f.path, name+partialSuffix)
	file, err := os.OpenFile(partial, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("creating disk %s: %w", name, err), os.Remove(partial))
		}
	}()
	if err := errors.Join(file.Truncate(size), file.Close()); err != nil {
		return err
	}
	if err := format(ctx, partial, size); err != nil {
		return err
	}
	return os.Rename(partial, path)
}

// Size returns the size of a disk in bytes, or os.ErrNotExist.
func (f *Folder) Size(name string) (int64, error) {
	path, err := f.Path(name)
	if err != nil {
		return 0, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Grow makes a disk at least size bytes large and returns the size that it has then. It never shrinks. The file
// system grows with GrowFileSystem, when it is mounted.
func (f *Folder) Grow(name string, size int64) (int64, error) {
	existing, err := f.Size(name)
	if err != nil || existing >= size {
		return existing, err
	}
	path, err := f.Path(name)
	if err != nil {
		return 0, err
	}
	return size, os.Truncate(path, size)
}

// Remove deletes a disk with all its bytes; that it does not exist is fine. A disk that is mounted, by whomever on
// this machine, is ErrInUse and stays.
func (f *Folder) Remove(name string) error {
	path, err := f.Path(name)
	if err != nil {
		return err
	}
	device, err := f.Attached(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if device != nil {
		return fmt.Errorf("removing disk %s: attached to %s: %w", name, device.Path, ErrInUse)
	}
	return os.Remove(path)
}

// Attached returns the loop device that a disk is attached to, or nil. A disk that does not exist is os.ErrNotExist.
func (f *Folder) Attached(name string) (*loop.Device, error) {
	path, err := f.Path(name)
	if err != nil {
		return nil, err
	}
	file, err := loop.FileOf(path)
	if err != nil {
		return nil, err
	}
	devices, err := loop.List()
	if err != nil {
		return nil, err
	}
	for _, device := range devices {
		if device.File == file {
			return &device, nil
		}
	}
	return nil, nil
}

// Names returns the names of all disks, sorted, and removes what an interrupted Create left. It must not run beside
// Create.
func (f *Folder) Names() ([]string, error) {
	entries, err := os.ReadDir(f.path)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), partialSuffix) {
			if err := os.Remove(filepath.Join(f.path, entry.Name())); err != nil {
				return nil, err
			}
		} else if name, isDisk := strings.CutSuffix(entry.Name(), suffix); isDisk {
			names = append(names, name)
		}
	}
	return names, nil
}
