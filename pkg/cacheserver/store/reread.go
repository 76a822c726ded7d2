// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

const (
	// recoveryTime bounds the wait for a volume after a failed read. A probe of the volume has a result earlier.
	recoveryTime = 5 * time.Second
	// recoveryInterval is the time between two looks at the health of the volume.
	recoveryInterval = 50 * time.Millisecond
)

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
