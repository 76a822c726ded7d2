// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"context"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
)

const (
	// verifyPause limits these verifications to 50 MiB/s, so 100 GiB take at least 35 minutes. busyPause limits them to
	// 5 MiB/s while any content is pinned.
	verifyPause = 20 * time.Millisecond
	busyPause   = 200 * time.Millisecond
	// verifyAgainAfter is the time for which a verification, or a download, counts as recent. A disk can lose bits at any
	// time.
	verifyAgainAfter = time.Hour
	// maxServed bounds the served content that waits for a verification. Further content is ignored until it is served again.
	maxServed = 1 << 10
)

// served is the content that was served and is due for another verification. It is safe for concurrent use.
type served struct {
	// verifiedSince is store.Store.VerifiedSince.
	verifiedSince func(digest.Digest, time.Time) bool
	queue         chan digest.Digest

	mu      sync.Mutex // guards waiting
	waiting map[digest.Digest]bool
}

func newServed(verifiedSince func(digest.Digest, time.Time) bool) *served {
	return &served{
		verifiedSince: verifiedSince,
		queue:         make(chan digest.Digest, maxServed),
		waiting:       map[digest.Digest]bool{},
	}
}

// add puts content into the queue, unless it waits already, was verified recently, or the queue is full.
func (s *served) add(d digest.Digest, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting[d] || s.isRecent(d, now) {
		return
	}
	select {
	case s.queue <- d:
		s.waiting[d] = true
	default: // see maxServed
	}
}

// isRecent reports that the content was verified recently.
func (s *served) isRecent(d digest.Digest, now time.Time) bool {
	return s.verifiedSince(d, now.Add(-verifyAgainAfter))
}

// take ends the wait of content that was received from the queue. It returns true if the content must be verified.
func (s *served) take(d digest.Digest, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiting, d)
	return !s.isRecent(d, now)
}

// verifier compares content with its digest: all content that an earlier process has stored, once, and served content
// regularly. Served content is skipped if its file is younger than verifyAgainAfter, because its download has verified it.
// It is used by one goroutine.
type verifier struct {
	volume store.Maintenance
	index  *evict.Index
	served *served
	log    *slog.Logger
}

// run verifies the adopted content, and served content in turns with it, until ctx ends.
func (v *verifier) run(ctx context.Context, adopted []evict.Record) {
	for _, r := range adopted {
		select {
		case d := <-v.served.queue:
			v.verifyServed(ctx, d)
		default:
		}
		v.verifyAdopted(ctx, r.Digest)
		if ctx.Err() != nil {
			return
		}
	}
	for {
		select {
		case d := <-v.served.queue:
			v.verifyServed(ctx, d)
		case <-ctx.Done():
			return
		}
	}
}

func (v *verifier) verifyAdopted(ctx context.Context, d digest.Digest) {
	// verify logs each error.
	_ = store.Conclude(ctx, func() error {
		return v.verify(ctx, d, func(fs.FileInfo) bool { return true })
	})
}

func (v *verifier) verifyServed(ctx context.Context, d digest.Digest) {
	now := time.Now()
	if !v.served.take(d, now) {
		return
	}
	// After an error, it is verified when it is served again.
	_ = v.verify(ctx, d, func(info fs.FileInfo) bool {
		age := now.Sub(info.ModTime())
		return age < 0 || age >= verifyAgainAfter
	})
}

// verify reads the content if mustVerify returns true for its file, and drops it if it is corrupt. It returns the errors of the
// volume.
func (v *verifier) verify(ctx context.Context, d digest.Digest, mustVerify func(fs.FileInfo) bool) error {
	f, err := v.volume.Open(d)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil || !mustVerify(info) {
		return err
	}
	_, err = v.volume.Verify(ctx, f, d, func() { v.pause(ctx) })
	if err != nil && ctx.Err() == nil {
		v.log.Warn("Cannot verify content, or cannot delete corrupt content", "digest", d, "error", err)
	}
	return err
}

func (v *verifier) pause(ctx context.Context) {
	d := verifyPause
	if v.index.Stats().Pinned > 0 {
		d = busyPause
	}
	rest(ctx, d)
}
