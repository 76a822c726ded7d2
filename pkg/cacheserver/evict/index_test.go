// SPDX-License-Identifier: Apache-2.0

package evict

import (
	"testing"

	"github.com/opencontainers/go-digest"
)

func BenchmarkUse(b *testing.B) {
	x := NewIndex(NewLRU(limits.TTL))
	names := make([]digest.Digest, 100_000)
	for n := range names {
		names[n] = name(n)
		x.AddContent(names[n], 1, start)
		x.Link(names[n], layer)
	}
	x.Complete()
	b.ReportAllocs()
	now, n := start, 0
	for b.Loop() {
		now = now.Add(1)
		pin(x, names[n], now)
		x.Unpin(names[n], now)
		n = (n + 7919) % len(names)
	}
}
