// SPDX-License-Identifier: Apache-2.0

package disk

import "fmt"

const (
	mib = 1 << 20

	// MinSize is the size in bytes of the smallest disk. mkfs.xfs 6.1 refuses 8 MiB and accepts 16 MiB (measured).
	MinSize = 16 * mib
	// MaxSize is the size in bytes of the largest disk. Disks are sparse, so a test may ask for more than the machine
	// has; 8 TiB is half of what a file on ext4 can have.
	MaxSize = 8 << 40

	// supportedSize is the size in bytes below which mkfs.xfs (since 5.19) wants to be told that it may go lower: it
	// would otherwise reserve a log of 64 MiB.
	supportedSize = 300 * mib
)

// SizeError tells that no disk can have the wanted size.
type SizeError struct{ reason string }

func (e *SizeError) Error() string { return e.reason }

// Size returns the size in bytes of a disk for a request of at least required and at most limit bytes, where zero is
// "not said": required rounded up to whole mebibytes, MinSize if nothing is required. The error is a *SizeError that
// names the bound which cannot be met.
func Size(required, limit int64) (int64, error) {
	if required < 0 || limit < 0 {
		return 0, &SizeError{fmt.Sprintf("a size of %d to %d bytes is not possible: sizes are positive", required, limit)}
	}
	if required == 0 {
		required = MinSize
		if limit > 0 && limit < MinSize {
			return 0, tooSmall(limit)
		}
	}
	if required < MinSize {
		return 0, tooSmall(required)
	}
	if required > MaxSize {
		return 0, &SizeError{fmt.Sprintf("a size of %d bytes is more than a volume can have (%d bytes, 8Ti)", required, int64(MaxSize))}
	}
	size := (required + mib - 1) / mib * mib
	if limit > 0 && size > limit {
		return 0, &SizeError{fmt.Sprintf("no size between %d and %d bytes is a multiple of 1Mi", required, limit)}
	}
	return size, nil
}

func tooSmall(size int64) *SizeError {
	return &SizeError{fmt.Sprintf("a size of %d bytes is too small for XFS: ask for 16Mi or more", size)}
}
