// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

// OS is an FS without deadlines, for programs that only read a volume. It does not change the access times of files if the
// process is their owner or the superuser: they count as last uses where no server has recorded one.
type OS struct{}

// ReadFile implements FS. It returns an error for anything but a regular file, without blocking on it.
func (OS) ReadFile(path string, limit int64) ([]byte, error) {
	const flags = os.O_RDONLY | syscall.O_NONBLOCK // a FIFO would block
	f, err := os.OpenFile(path, flags|syscall.O_NOATIME, 0)
	if errors.Is(err, syscall.EPERM) {
		f, err = os.OpenFile(path, flags, 0)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) > limit {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", volume.ErrTooLarge, path, limit)
	}
	return content, nil
}

// Stat implements FS.
func (OS) Stat(path string) (fs.FileInfo, error) { return os.Stat(path) }

// ReadDir implements FS.
func (OS) ReadDir(path string) ([]fs.DirEntry, error) { return os.ReadDir(path) }
