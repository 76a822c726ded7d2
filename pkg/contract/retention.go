// SPDX-License-Identifier: Apache-2.0

package contract

import (
	"errors"
	"fmt"
	"time"
)

// Defaults of garbage collection.
const (
	// DefaultTTL is the default time since its last use after which content is deleted: 7 days.
	DefaultTTL = 7 * 24 * time.Hour
	// DefaultHighWatermark is the default used share of the volume, in percent, at which eviction starts.
	DefaultHighWatermark = 90

	// watermarkDistance is the default distance of the low watermark from the high one, in percent of the volume.
	watermarkDistance = 10
)

// DefaultLowWatermark returns the used share of the volume, in percent, at which eviction ends by default: 10 less than
// the high watermark, at least 0.
func DefaultLowWatermark(high int) int {
	if high < watermarkDistance {
		return 0
	}
	return high - watermarkDistance
}

// CheckTTL rejects negative times to live. 0 is valid and disables deletion.
func CheckTTL(ttl time.Duration) error {
	if ttl < 0 {
		return errors.New("must not be negative, for example 168h; 0s means that nothing is ever deleted")
	}
	return nil
}

// CheckHighWatermark accepts percentages from 1 to 100.
func CheckHighWatermark(high int) error {
	if high < 1 || high > 100 {
		return errors.New("must be a percentage of the volume from 1 to 100, for example 90")
	}
	return nil
}

// CheckLowWatermark accepts percentages from 0 to below high, which must be valid.
func CheckLowWatermark(low, high int) error {
	if low < 0 || low >= high {
		return fmt.Errorf("must be a percentage of the volume from 0 to %d, below highWatermark, which is %d", high-1, high)
	}
	return nil
}
