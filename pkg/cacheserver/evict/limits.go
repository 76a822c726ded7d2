// SPDX-License-Identifier: Apache-2.0

// Package evict decides which objects of a volume are deleted, when, and in which order. It does no I/O: its callers
// report the content, the links and the usage of the volume, and delete the objects that it selects.
package evict

import "time"

// Limits are the limits of a cache.
type Limits struct {
	// TTL is the duration after the last use of an object at which it expires. 0 or less disables all eviction, also at
	// the watermarks.
	TTL time.Duration
	// HighWatermark is the used percentage of the volume at which eviction of the least recently used objects starts.
	HighWatermark int
	// LowWatermark is the used percentage at which that eviction stops.
	LowWatermark int
	// Size is the number of bytes that the cache may use of the volume. 0 or less: as much as the file system has.
	Size int64
}

// Amount is the usage and the limit of a resource. A Limit of 0 means that there is no limit, or that it is unknown.
type Amount struct{ Used, Limit int64 }

// hasFree reports whether less than the limit is used, or the limit is unknown.
func (a Amount) hasFree() bool { return a.Limit <= 0 || a.Used < share(a.Limit, 100-minFree) }

// Usage is the usage of a volume at one moment.
type Usage struct {
	// FileSystem is the usage of the file system in bytes, by all files on it.
	FileSystem Amount
	// Inodes is the usage of the file system in inodes, by all files on it.
	Inodes Amount
	// Own is the number of bytes of the content of this cache, including space that is reserved for downloads.
	Own int64
	// Reserved is the part of Own that is reserved for downloads. It may occupy the file system or not: a download reserves it
	// before it writes, and releases it after its content was added to Own.
	Reserved int64
	// Removable estimates the bytes that the file system would gain if the cache deleted all of its content.
	Removable int64
	// Objects is the number of objects of this cache with content.
	Objects int
}

// Need is the minimum that an eviction has to delete. Both parts must be reached.
type Need struct {
	Bytes   int64
	Objects int
}

const (
	// inodesPerObject is the minimum number of inodes of an object: the file and the directory of its content, and those
	// of one link.
	inodesPerObject = 4
	// fullShare is the percentage of objects that is evicted if a write fails because the volume is full, although the
	// file system reports free space: it has a limit that statfs(2) does not show, such as a quota.
	fullShare = 5
	// minFree is the smallest free percentage of a file system that is not full itself. A write can fail before all of its
	// space is used.
	minFree = 1
)

// Need returns the amounts that must be evicted to bring the usage down to the low watermark. It is zero unless the usage has
// reached the high watermark, or full is true: a write has just failed because the volume is full.
//
// The cache deletes nothing for space that other files occupy: if the file system would stay above the low watermark
// without all content of the cache, its watermarks do not apply, and a failed write on a file system without free space has no
// effect.
func (l Limits) Need(u Usage, full bool) Need {
	var n Need
	if l.TTL <= 0 {
		return n
	}
	n.Bytes = l.excess(Amount{u.Own, l.Size}, full)
	if others := u.FileSystem.Used - max(u.Removable, u.Own); others <= share(u.FileSystem.Limit, l.LowWatermark) {
		n.Bytes = max(n.Bytes, l.excess(u.FileSystem, full))
	}
	own := int64(u.Objects) * inodesPerObject
	if u.Inodes.Used-own <= share(u.Inodes.Limit, l.LowWatermark) {
		n.Objects = int((l.excess(u.Inodes, full) + inodesPerObject - 1) / inodesPerObject)
	}
	if full && n == (Need{}) && u.FileSystem.hasFree() && u.Inodes.hasFree() {
		n.Objects = (u.Objects*fullShare + 99) / 100
	}
	return n
}

// excess returns the part of a that is above the low watermark, 0 if neither full nor the high watermark is reached.
func (l Limits) excess(a Amount, full bool) int64 {
	if a.Limit <= 0 || !full && a.Used < share(a.Limit, l.HighWatermark) {
		return 0
	}
	return max(a.Used-share(a.Limit, l.LowWatermark), 0)
}

// Fits reports whether an object of this size in bytes fits below the low watermark of a volume without other content, or the
// limit of the volume is unknown.
func (l Limits) Fits(u Usage, size int64) bool {
	limit := u.FileSystem.Limit
	if l.Size > 0 && (limit <= 0 || l.Size < limit) {
		limit = l.Size
	}
	return limit <= 0 || size <= share(limit, l.LowWatermark)
}

// Allows reports whether size more bytes are within Size.
func (l Limits) Allows(u Usage, size int64) bool { return l.Size <= 0 || u.Own <= l.Size-size }

// Effective returns the limit in bytes that the cache reaches first: its own size, or that of the file system.
func (l Limits) Effective(u Usage) Amount {
	own := Amount{u.Own, l.Size}
	switch {
	case l.Size <= 0:
		return u.FileSystem
	case u.FileSystem.Limit <= 0 || own.Limit-own.Used <= u.FileSystem.Limit-u.FileSystem.Used:
		return own
	}
	return u.FileSystem
}

// needAtHighWatermark returns the amounts that are evicted as soon as the usage reaches the high watermark.
func (l Limits) needAtHighWatermark(u Usage) Need {
	limit := l.Effective(u).Limit
	return Need{Bytes: l.excess(Amount{share(limit, l.HighWatermark), limit}, false)}
}

// SatisfiedBy reports whether an eviction that has deleted these bytes and objects is sufficient.
func (n Need) SatisfiedBy(bytes int64, objects int) bool {
	return bytes >= n.Bytes && objects >= n.Objects
}

// share returns percent of limit, rounded down, without overflow.
func share(limit int64, percent int) int64 {
	return limit/100*int64(percent) + limit%100*int64(percent)/100
}
