// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"context"
	"io/fs"
	"log/slog"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
)

const (
	// verifyPause limits the verification of adopted content to 50 MiB/s, so 100 GiB take 35 minutes. busyPause limits it
	// to 5 MiB/s while content is read or written by clients.
	verifyPause = 20 * time.Millisecond
	busyPause   = 200 * time.Millisecond
	// maxSuspects bounds the waiting suspects. Further ones are ignored: they are reported again by the next failing pull.
	maxSuspects = 64
)

// verifier compares content with its digest: all content that an earlier process has stored, once, and suspects
// immediately. Content that this process stores was verified before. It is used by one goroutine.
type verifier struct {
	volume   store.Maintenance
	index    *evict.Index
	suspects <-chan digest.Digest
	drop     func(d digest.Digest, read fs.FileInfo, reason string) error
	log      *slog.Logger
}

// run verifies the adopted content and then suspects, until ctx ends.
func (v *verifier) run(ctx context.Context, adopted []evict.Record) {
	for _, r := range adopted {
		for len(v.suspects) > 0 {
			v.verify(ctx, <-v.suspects, func() {})
		}
		v.verify(ctx, r.Digest, func() { v.pause(ctx) })
		if ctx.Err() != nil {
			return
		}
	}
	for {
		select {
		case d := <-v.suspects:
			v.verify(ctx, d, func() {})
		case <-ctx.Done():
			return
		}
	}
}

// verify drops the content unless it has its digest. Content that was deleted, or a volume that does not respond, is no
// reason.
func (v *verifier) verify(ctx context.Context, d digest.Digest, pause func()) {
	f, err := v.volume.Open(d)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }() // it was only read
	if err := store.Verify(ctx, f, d, pause, v.drop); err != nil {
		v.log.Warn("Cannot delete corrupt content", "digest", d, "error", err)
	}
}

func (v *verifier) pause(ctx context.Context) {
	d := verifyPause
	if v.index.Stats().Pinned > 0 {
		d = busyPause
	}
	rest(ctx, d)
}
