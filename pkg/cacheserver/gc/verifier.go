// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"context"
	"log/slog"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/lru"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
)

const (
	// verifyPause limits the verification of adopted content to 50 MiB/s, so 100 GiB take 35 minutes. busyPause limits it
	// to 5 MiB/s while content is read or written by clients.
	verifyPause = 20 * time.Millisecond
	busyPause   = 200 * time.Millisecond
	// verifyAgainAfter is the age of a verification from which served content is verified again: a disk can lose bits at any
	// time. A verification needs about as much processor time as sending the content once.
	verifyAgainAfter = time.Hour
	// maxServed bounds the served content that waits for a verification. Further content is ignored until it is served again.
	maxServed = 64
	// maxVerified bounds the remembered verifications. An entry needs about 200 bytes.
	maxVerified = 1 << 14
)

// verifier compares content with its digest: all content that an earlier process has stored, once, and served content
// regularly. Content that this process stores was verified before. It is used by one goroutine.
type verifier struct {
	volume   store.Maintenance
	index    *evict.Index
	served   <-chan digest.Digest
	verified *lru.Map[digest.Digest, time.Time]
	log      *slog.Logger
}

func newVerifier(volume store.Maintenance, index *evict.Index, served <-chan digest.Digest, log *slog.Logger) *verifier {
	return &verifier{
		volume:   volume,
		index:    index,
		served:   served,
		verified: lru.New(maxVerified, func(digest.Digest, time.Time) int64 { return 1 }),
		log:      log,
	}
}

// run verifies the adopted content, and served content in between and afterwards, until ctx ends.
func (v *verifier) run(ctx context.Context, adopted []evict.Record) {
	for _, r := range adopted {
		for len(v.served) > 0 {
			v.verify(ctx, <-v.served)
		}
		v.verify(ctx, r.Digest)
		if ctx.Err() != nil {
			return
		}
	}
	for {
		select {
		case d := <-v.served:
			v.verify(ctx, d)
		case <-ctx.Done():
			return
		}
	}
}

// verify drops the content unless it has its digest, or had it recently. Content that was deleted, or a volume that does not
// respond, is no reason.
func (v *verifier) verify(ctx context.Context, d digest.Digest) {
	if at, known := v.verified.Get(d); known && time.Since(at) < verifyAgainAfter {
		return
	}
	f, err := v.volume.Open(d)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }() // it was only read
	if err := store.Verify(ctx, f, d, func() { v.pause(ctx) }, v.volume.Drop); err != nil {
		v.log.Warn("Cannot delete corrupt content", "digest", d, "error", err)
	}
	v.verified.Put(d, time.Now())
}

func (v *verifier) pause(ctx context.Context) {
	d := verifyPause
	if v.index.Stats().Pinned > 0 {
		d = busyPause
	}
	rest(ctx, d)
}
