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
	"github.com/registry-cache/extension/pkg/cacheserver/lru"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
)

const (
	// verifyPause limits verifications to 50 MiB/s, so 100 GiB take 35 minutes. busyPause limits them to 5 MiB/s while
	// content is read or written by clients.
	verifyPause = 20 * time.Millisecond
	busyPause   = 200 * time.Millisecond
	// verifyAgainAfter is the age of a verification from which served content is verified again: a disk can lose bits at any
	// time.
	verifyAgainAfter = time.Hour
	// maxServed bounds the served content that waits for a verification. Further content is ignored until it is served again.
	maxServed = 1 << 10
	// maxVerified bounds the remembered verifications. An entry needs about 200 bytes.
	maxVerified = 1 << 14
)

// served is the content that was served and is due for another verification. It is safe for concurrent use.
type served struct {
	queue chan digest.Digest

	mu       sync.Mutex // guards the following fields
	waiting  map[digest.Digest]bool
	verified *lru.Map[digest.Digest, time.Time]
}

func newServed() *served {
	return &served{
		queue:    make(chan digest.Digest, maxServed),
		waiting:  map[digest.Digest]bool{},
		verified: lru.New(maxVerified, func(digest.Digest, time.Time) int64 { return 1 }),
	}
}

// add puts content into the queue, unless it was verified recently.
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

// isRecent reports that the content was verified recently. The caller holds the lock.
func (s *served) isRecent(d digest.Digest, now time.Time) bool {
	at, known := s.verified.Get(d)
	return known && now.Sub(at) < verifyAgainAfter
}

// done notes a verification, which has proven that the content is intact or not.
func (s *served) done(d digest.Digest, intact bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiting, d)
	if intact {
		s.verified.Put(d, now)
	}
}

// verifier compares content with its digest: all content that an earlier process has stored, once, and served content
// regularly. Content that this process has stored recently was verified by its download. It is used by one goroutine.
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
		v.verify(ctx, r.Digest, func(fs.FileInfo) bool { return true })
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

func (v *verifier) verifyServed(ctx context.Context, d digest.Digest) {
	now := time.Now()
	v.verify(ctx, d, func(info fs.FileInfo) bool {
		age := now.Sub(info.ModTime())
		return age < 0 || age >= verifyAgainAfter
	})
}

// verify drops the content if it is corrupt and the file is due. Content that was deleted, or a volume that does not respond,
// is no reason.
func (v *verifier) verify(ctx context.Context, d digest.Digest, isDue func(fs.FileInfo) bool) {
	intact := false
	defer func() { v.served.done(d, intact, time.Now()) }()
	f, err := v.volume.Open(d)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }() // it was only read
	if info, err := f.Stat(); err != nil || !isDue(info) {
		return
	}
	if intact, err = store.Verify(ctx, f, d, func() { v.pause(ctx) }, v.volume.Drop); err != nil {
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
