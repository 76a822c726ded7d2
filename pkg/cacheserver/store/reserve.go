// SPDX-License-Identifier: Apache-2.0

package store

import "github.com/registry-cache/extension/pkg/cacheserver/volume"

// allocate allocates space for a file without a change of its size. It returns an error only if the volume fails, for example
// because it has no space. Any other error means that the file system cannot reserve space: besides EOPNOTSUPP, file
// systems return EINVAL, EPERM, ENODEV and others.
func allocate(f *volume.File, size int64) error {
	if size <= 0 {
		return nil
	}
	if err := f.Allocate(0, size); volume.IsFailure(err) {
		return err
	}
	return nil
}
