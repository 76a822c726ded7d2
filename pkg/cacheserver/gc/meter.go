// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"sync"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

const (
	// ineffectiveTime is how long the collector deletes nothing for the file system after deletions without effect on it.
	ineffectiveTime = 10 * time.Minute
	// maxIneffective is the number of consecutive deletions without effect after which that is no coincidence with a write of
	// another process.
	maxIneffective = 2
	// minCompared is the smallest percentage of the file system whose deletion must have an effect. The effect of smaller
	// deletions is less than that of other writes.
	minCompared = 1
)

// meter detects that deletions of the cache do not free space of the file system, because other processes use it
// immediately, or because the file system does not report it. Further deletions would then delete all content without any
// effect. It is safe for concurrent use.
type meter struct {
	mu sync.Mutex // guards the following fields
	// others is the largest number of used bytes that may not be content of the cache, before the deletions.
	others int64
	// deleted is the number of bytes that were deleted since the last comparison.
	deleted int64
	// ineffective is the number of consecutive deletions without effect.
	ineffective int
	// ineffectiveUntil is the end of a period without deletions for the file system.
	ineffectiveUntil time.Time
}

// recordDeletion records that bytes of content were deleted when the usage was u.
func (m *meter) recordDeletion(u evict.Usage, bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.deleted == 0 {
		m.others = u.FileSystem.Used - (u.Own - u.Reserved)
	}
	m.deleted += bytes
}

// compare compares the usage after deletions with the usage before. It returns false if the file system has gained less
// than half of the deleted bytes, repeatedly.
func (m *meter) compare(u evict.Usage, now time.Time) (effective bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	deleted := m.deleted
	m.deleted = 0
	if u.FileSystem.Limit == 0 || deleted < u.FileSystem.Limit/100*minCompared || deleted == 0 {
		return true
	}
	// All of the reserved space may have been occupied since the deletions, none of it before: u.Own includes it, m.others, too.
	gained := deleted - (u.FileSystem.Used - u.Own - m.others)
	if gained >= deleted/2 {
		m.ineffective = 0
		return true
	}
	if m.ineffective++; m.ineffective < maxIneffective {
		return true
	}
	m.ineffectiveUntil = now.Add(ineffectiveTime)
	return false
}

// isEffective returns false while deletions do not free space of the file system.
func (m *meter) isEffective(now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !now.Before(m.ineffectiveUntil)
}
