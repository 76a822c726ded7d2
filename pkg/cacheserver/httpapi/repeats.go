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
	// maxRepeats bounds the remembered responses. An entry needs about 200 bytes.
	maxRepeats = 4096
)

// repeats remembers the complete responses with stored blobs. A client that requests all of a blob again has probably
// received corrupt content. It is safe for concurrent use.
type repeats struct {
	mu   sync.Mutex // guards sent
	sent *lru.Map[repeat, time.Time]
}

type repeat struct {
	client string // IP address
	digest digest.Digest
}

func newRepeats() *repeats {
	return &repeats{sent: lru.New(maxRepeats, func(repeat, time.Time) int64 { return 1 })}
}

// complete records that a client has received all of a blob.
func (r *repeats) complete(remoteAddress string, d digest.Digest, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent.Put(repeat{clientOf(remoteAddress), d}, now)
}

// suspicious reports whether the client has received all of the blob a short time ago, and when.
func (r *repeats) suspicious(remoteAddress string, d digest.Digest, now time.Time) (received time.Time, suspicious bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	received, known := r.sent.Peek(repeat{clientOf(remoteAddress), d})
	return received, known && now.Sub(received) < repeatTime
}

// clientOf returns the address without the port, which is another one for each connection.
func clientOf(remoteAddress string) string {
	host, _, err := net.SplitHostPort(remoteAddress)
	if err != nil {
		return remoteAddress
	}
	return host
}
