// SPDX-License-Identifier: Apache-2.0

package volume

import "testing"

// Thousands of slow clients occupy small buffers.
func TestBuffers(t *testing.T) {
	t.Parallel()
	b := newBuffers()
	sizes := func(n, want int64) (buffer *[]byte) {
		t.Helper()
		buffer = b.get(n)
		if got := int64(len(*buffer)); got != want {
			t.Errorf("a buffer for %d bytes has %d, want %d", n, got, want)
		}
		return buffer
	}
	sizes(smallBuffer, smallBuffer)
	var lent []*[]byte
	for range maxLarge {
		lent = append(lent, sizes(1<<30, largeBuffer))
	}
	b.put(sizes(1<<30, smallBuffer))
	b.put(lent[0])
	sizes(smallBuffer+1, largeBuffer)
	sizes(1<<30, smallBuffer)
	b.forget(lent[1])
	sizes(1<<30, largeBuffer)
}
