// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"syscall"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

// statVolume measures the volume of root as df does: what only the superuser may fill is no part of the limit.
func statVolume(root string) (evict.Volume, error) {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(root, &stat); err != nil {
		return evict.Volume{}, fmt.Errorf("measuring volume %s: %w", root, err)
	}
	used := int64(stat.Blocks-stat.Bfree) * stat.Bsize
	return evict.Volume{Used: used, Limit: used + int64(stat.Bavail)*stat.Bsize}, nil
}
