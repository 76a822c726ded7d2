// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"syscall"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

// Space is the usage of a file system by all files on it.
type Space struct {
	// Bytes excludes space that only the superuser can use, as df does.
	Bytes evict.Amount
	// Inodes has the limit 0 on file systems that create inodes on demand.
	Inodes evict.Amount
}

// spaceOf converts the result of statfs(2).
func spaceOf(stat syscall.Statfs_t) Space {
	// Blocks are in units of the fragment size, see statvfs(3). Some FUSE file systems report 0.
	unit := stat.Frsize
	if unit == 0 {
		unit = stat.Bsize
	}
	used := int64(stat.Blocks-stat.Bfree) * unit
	s := Space{Bytes: evict.Amount{Used: used, Limit: used + int64(stat.Bavail)*unit}}
	if stat.Files > 0 && stat.Ffree <= stat.Files {
		s.Inodes = evict.Amount{Used: int64(stat.Files - stat.Ffree), Limit: int64(stat.Files)}
	}
	return s
}
