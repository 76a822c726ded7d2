// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"net"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/lru"
)

const (
	// repeatTime is the time within which a second complete request for a blob is suspicious. containerd requests a layer
	// again when it has found another digest, at the next attempt of the kubelet: after 10 s to 5 min.
	repeatTime = 10 * time.Minute
	// maxRepeats bounds the remembered pairs of a client and a blob. An entry needs about 250 bytes.
	maxRepeats = 4096
)

// repeats remembers how many bytes of stored blobs each client has received. A client that requests the first byte of a blob
// again after all of its bytes has probably received corrupt content. It is safe for concurrent use.
type repeats struct {
	mu         sync.Mutex // guards receptions
	receptions *lru.Map[repeat, reception]
}

type repeat struct {
	client string // IP address
	digest digest.Digest
}

// reception is the part of a blob that a client has received.
type reception struct {
	// sent is the number of bytes of all responses since complete. It counts bytes twice that two responses have in common, and
	// includes bytes that the client has not read. Therefore clients that received all bytes, in any order, have at least the
	// size of the blob; other clients can have as many, which costs a verification.
	sent int64
	// complete is the last time at which sent reached the size of the blob, zero before.
	complete time.Time
}

func newRepeats() *repeats {
	return &repeats{receptions: lru.New(maxRepeats, func(repeat, reception) int64 { return 1 })}
}

// received records that a response with bytes of a blob has ended. size is that of the blob.
func (r *repeats) received(remoteAddress string, d digest.Digest, bytes, size int64, now time.Time) {
	key := repeat{clientOf(remoteAddress), d}
	r.mu.Lock()
	defer r.mu.Unlock()
	got, _ := r.receptions.Get(key)
	got.sent += bytes
	if size >= 0 && got.sent >= size {
		got = reception{complete: now}
	}
	r.receptions.Put(key, got)
}

// suspicious reports whether the client has received all of the blob a short time ago, and when.
func (r *repeats) suspicious(remoteAddress string, d digest.Digest, now time.Time) (complete time.Time, suspicious bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	got, _ := r.receptions.Peek(repeat{clientOf(remoteAddress), d})
	return got.complete, now.Sub(got.complete) < repeatTime
}

// clientOf returns the address without the port, which is another one for each connection.
func clientOf(remoteAddress string) string {
	host, _, err := net.SplitHostPort(remoteAddress)
	if err != nil {
		return remoteAddress
	}
	return host
}
