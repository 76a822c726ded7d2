// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"sync"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

const (
	// ineffectiveTime is how long deletions for the file system are suspended after deletions without effect on it.
	ineffectiveTime = 10 * time.Minute
	// maxIneffective is the number of consecutive comparisons without effect that suspends deletions. A concurrent write of
	// another process can be the reason of a single one.
	maxIneffective = 2
	// minCompared is the smallest deletion that is compared, in percent of the file system. Other writes hide the effect of
	// smaller ones.
	minCompared = 1
)

// meter detects that deletions of the cache do not free space of the file system, because other processes use it
// immediately, or because the file system does not report freed space. Further deletions would then delete all content without any
// effect. It is safe for concurrent use.
type meter struct {
	mu sync.Mutex // guards the following fields
	// others is the largest possible number of bytes that other files used before the deletions.
	others int64
	// reserved is the reserved part of others: it can be content of the cache.
	reserved int64
	// deleted is the number of bytes that were deleted since the last conclusive comparison, and since is the time of the first
	// of these deletions.
	deleted int64
	since   time.Time
	// ineffective is the number of consecutive deletions without effect.
	ineffective int
	// ineffectiveUntil is the end of a period without deletions for the file system.
	ineffectiveUntil time.Time
}

// recordDeletion records that bytes of content were deleted. u is the usage before the deletion.
func (m *meter) recordDeletion(u evict.Usage, bytes int64, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.deleted == 0 {
		m.others, m.reserved, m.since = u.FileSystem.Used-(u.Own-u.Reserved), u.Reserved, now
	}
	m.deleted += bytes
}

// compare compares the usage after deletions with the usage before. It returns false if less than half of the deleted bytes
// were freed, in maxIneffective consecutive comparisons.
func (m *meter) compare(u evict.Usage, now time.Time) (effective bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if u.FileSystem.Limit == 0 || m.deleted < u.FileSystem.Limit/100*minCompared || m.deleted == 0 {
		m.deleted = 0
		return true
	}
	// It is unknown how much of the reserved space was occupied at both times.
	most := m.deleted - (u.FileSystem.Used - u.Own - m.others)
	least := most - m.reserved - u.Reserved
	expected := m.deleted / 2
	switch {
	case least >= expected:
		m.deleted, m.ineffective = 0, 0
		return true
	case most >= expected:
		if now.Sub(m.since) >= ineffectiveTime {
			m.deleted = 0 // others have probably changed
		}
		return true // compared again, also with further deletions
	}
	m.deleted = 0
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
