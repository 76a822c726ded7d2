// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"sync"
	"sync/atomic"
)

const (
	// largeBuffer is the size of a buffer in bytes. Smaller reads cost more processor time per byte: each one is executed by
	// another goroutine.
	largeBuffer = 128 << 10
	// smallBuffer is the size of a buffer while many others are in use.
	smallBuffer = 16 << 10
	// maxLarge bounds the large buffers in use. A slow client occupies its buffer until it has received the bytes, and there
	// may be thousands of slow clients.
	maxLarge = 64
)

// buffers lends the buffers of reads. It is safe for concurrent use.
type buffers struct {
	large, small sync.Pool    // of *[]byte
	lent         atomic.Int64 // large ones
}

func newBuffers() *buffers {
	b := &buffers{}
	b.large.New = func() any { buffer := make([]byte, largeBuffer); return &buffer }
	b.small.New = func() any { buffer := make([]byte, smallBuffer); return &buffer }
	return b
}

// get lends a buffer for n bytes or fewer: a large one if n needs it and there are not too many of them. The caller calls
// put, or forget if a system call may still write to it.
func (b *buffers) get(n int64) *[]byte {
	if n > smallBuffer && b.lent.Add(1) <= maxLarge {
		return b.large.Get().(*[]byte)
	}
	if n > smallBuffer {
		b.lent.Add(-1)
	}
	return b.small.Get().(*[]byte)
}

// put takes a buffer back.
func (b *buffers) put(buffer *[]byte) {
	b.forget(buffer)
	if len(*buffer) == largeBuffer {
		b.large.Put(buffer)
	} else {
		b.small.Put(buffer)
	}
}

// forget notes that a buffer will not be put back.
func (b *buffers) forget(buffer *[]byte) {
	if len(*buffer) == largeBuffer {
		b.lent.Add(-1)
	}
}
