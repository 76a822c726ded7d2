// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

// A corrupt file and a failing volume return the same errors. Two rules distinguish them:
//
//   - A read that fails is repeated once, as soon as a probe of the volume has succeeded. If it fails again, the file is corrupt.
//   - If no probe succeeds in time, the error proves nothing, and the verification is repeated later, see Conclude.
const (
	// recoveryTime bounds the wait for a volume after a failed read. A probe of the volume has a result earlier.
	recoveryTime = 5 * time.Second
	// recoveryInterval is the time between two looks at the health of the volume.
	recoveryInterval = 50 * time.Millisecond
	// maxAttempts bounds the attempts of Conclude. firstPause is the time between the first two of them. It doubles up to
	// maxPause, so that the attempts last about 8 minutes.
	maxAttempts = 20
	firstPause  = time.Second
	maxPause    = 30 * time.Second
)

// Conclude calls verify, which reads content, until its result concerns the content: nil, an error about the file, or about its
// deletion. After another error it calls verify again, about 8 minutes at most; attempts on a volume that does not
// respond do not count. It returns the last error, or the cause of ctx.
func Conclude(ctx context.Context, verify func() error) error {
	pause := firstPause
	for attempt := 1; ; {
		err := verify()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case isConclusive(err) || attempt == maxAttempts:
			return err
		case !errors.Is(err, volume.ErrHung):
			attempt++
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, maxPause)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// isConclusive reports that the result of a verification concerns its file, so that another attempt has the same result. A failure
// of the volume, and a lack of resources of the process, can disappear.
func isConclusive(err error) bool {
	if err == nil || errors.Is(err, errNotDropped) {
		return true
	}
	errno, _ := errors.AsType[syscall.Errno](err)
	return !volume.IsFailure(err) && !slices.Contains(shortages, errno)
}

// shortages are the errors of a lack of memory or of file descriptors.
var shortages = []syscall.Errno{syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE, syscall.EAGAIN}

// errUnreadable is wrapped by the error of a read that has failed twice, with a successful probe of the volume in between: the
// file is corrupt.
var errUnreadable = errors.New("it cannot be read")

// rereader reads again after an error that a corrupt file and a failing volume have in common. It is used by one goroutine.
type rereader struct {
	content io.Reader
	// recovers waits until the volume can be read. It returns false if that takes too long.
	recovers func() bool
}

// rereading returns a reader of content whose errors wrap errUnreadable if the content is corrupt.
func (c *contents) rereading(ctx context.Context, content io.Reader) rereader {
	return rereader{content: content, recovers: func() bool { return recovers(ctx, c.fs) }}
}

// Read implements io.Reader.
func (r rereader) Read(p []byte) (int, error) {
	n, err := r.content.Read(p)
	if n > 0 || !volume.MayBeCorrupt(err) || !r.recovers() {
		return n, err
	}
	n, err = r.content.Read(p)
	if volume.MayBeCorrupt(err) {
		err = fmt.Errorf("%w: %w", errUnreadable, err)
	}
	return n, err
}

// recovers waits until a probe has succeeded after a failed read. It returns false after recoveryTime, or when ctx ends.
func recovers(ctx context.Context, v *volume.FS) bool {
	ctx, cancel := context.WithTimeout(ctx, recoveryTime)
	defer cancel()
	look := time.NewTicker(recoveryInterval)
	defer look.Stop()
	for {
		if state := v.Health().State; state != volume.Failed && state != volume.Hung {
			return true
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return false
		}
	}
}
