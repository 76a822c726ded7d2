// SPDX-License-Identifier: Apache-2.0

package download

import (
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

const (
	// enough is the number of bytes after which an interrupted transfer counts as progress, if readers wait for the blob.
	// containerd continues after any number of bytes. With fewer bytes, it sends thousands of requests for a blob.
	enough = 16 << 10
	// enoughAlone is the same number without readers.
	enoughAlone = 1 << 20
	// immediate is the number of interruptions without progress that are followed by the next request immediately, as
	// containerd does (maxRetry in core/remotes/docker/httpreadseeker.go).
	immediate = 3
	// firstPause doubles with each further interruption, up to maxPause.
	firstPause, maxPause = 100 * time.Millisecond, 2 * time.Second
	// maxFruitless is how often in a row a request may bring no missing byte. containerd fails after as many.
	maxFruitless = immediate + 1
	// refusedPause is the least time without another additional transfer after the upstream has answered one with an error.
	// It doubles with each further failure, as does firstPause, up to maxRefusedPause.
	refusedPause, maxRefusedPause = 2 * time.Second, time.Minute
)

// retries decides when an interrupted download continues. It is a value: its methods return the changed one.
type retries struct {
	// count is the number of interruptions since the last progress.
	count int
	// fruitless is the number of requests in a row without any missing byte.
	fruitless int
}

// after returns the state after a transfer was interrupted that brought so many missing bytes. alone reports that the
// blob has no readers.
func (r retries) after(fresh int64, alone bool) retries {
	switch {
	case fresh >= enoughAlone, fresh >= enough && !alone:
		return retries{}
	case fresh > 0:
		return retries{count: r.count + 1}
	}
	return retries{count: r.count + 1, fruitless: r.fruitless + 1}
}

// pause returns the time until the next request, and false if there should be none.
func (r retries) pause() (time.Duration, bool) {
	if r.fruitless >= maxFruitless {
		return 0, false
	}
	if r.count <= immediate {
		return 0, true
	}
	return min(firstPause<<min(r.count-immediate-1, 10), maxPause), true
}

// refusals decides when another additional transfer begins after one has failed: the upstream may not allow several. It is a
// value: its methods return the changed one. The zero value permits a transfer.
type refusals struct {
	// count is the number of failures since the last progress.
	count int
	// until is the time of the next additional transfer.
	until time.Time
}

// after returns the state after an additional transfer has failed that brought so many missing bytes.
func (r refusals) after(failure *upstream.Error, fresh int64, now time.Time) refusals {
	if fresh >= enough {
		return refusals{}
	}
	if now.Before(r.until) {
		return r // it began before the failure that counts
	}
	pause := firstPause
	if failure.StatusCode != 0 {
		pause = refusedPause
	}
	pause = max(min(pause<<min(r.count, 10), maxRefusedPause), failure.RetryAfter)
	return refusals{count: r.count + 1, until: now.Add(pause)}
}
