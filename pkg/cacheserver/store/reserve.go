// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"syscall"

	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

// allocate allocates space for a file without a change of its size. It returns an error only if the space is not
// available (ENOSPC, EDQUOT), or if the volume fails (EIO) or hangs. Any other error means that the file system cannot
// reserve space: besides EOPNOTSUPP, file systems return EINVAL, EPERM, ENODEV and others.
func allocate(f *volume.File, size int64) error {
	if size <= 0 {
		return nil
	}
	err := f.Allocate(0, size)
	if volume.IsFull(err) || errors.Is(err, syscall.EIO) || errors.Is(err, volume.ErrHung) {
		return err
	}
	return nil
}
