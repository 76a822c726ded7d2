// SPDX-License-Identifier: Apache-2.0

package store

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/lru"
)

// verifications has the begin of the last verification with which content was intact. It is safe for concurrent use.
type verifications struct {
	mu     sync.Mutex
	begins *lru.Map[digest.Digest, time.Time]
}

func newVerifications() *verifications {
	return &verifications{begins: lru.New(maxVerified, func(digest.Digest, time.Time) int64 { return 1 })}
}

func (v *verifications) add(d digest.Digest, began time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.begins.Put(d, began)
}

// last returns the zero time if no verification is known.
func (v *verifications) last(d digest.Digest) time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	began, _ := v.begins.Get(d)
	return began
}

func (v *verifications) forget(d digest.Digest) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.begins.Remove(d)
}
