// SPDX-License-Identifier: Apache-2.0

package pullthrough

import (
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/oci"
)

const (
	// maxMemoryBytes bounds the content of remembered manifests, in bytes: thousands of them, which have some KiB each.
	maxMemoryBytes = 16 << 20
	// maxSizes bounds the remembered sizes of blobs. They are all forgotten when it is reached.
	maxSizes = 1 << 16
)

type manifestName struct {
	repository string
	digest     digest.Digest
}

// memory remembers manifests that were read from the store and checked, because reading, hashing and parsing one again
// costs as much as the rest of an answer. It does not know what the store still has; that is asked before each use. It
// is safe for concurrent use.
type memory struct {
	mu        sync.Mutex // guards what follows
	manifests map[manifestName]*Manifest
	bytes     int64
	sizes     map[digest.Digest]int64
}

func newMemory() *memory {
	return &memory{manifests: map[manifestName]*Manifest{}, sizes: map[digest.Digest]int64{}}
}

func (m *memory) get(repository string, d digest.Digest) *Manifest {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.manifests[manifestName{repository, d}]
}

// put remembers a manifest, which nobody may change any more, and the sizes that it gives for its blobs. Others go for
// it, whichever they are.
func (m *memory) put(repository string, manifest *Manifest) {
	// What cannot be read here is served all the same: a client may know more.
	sizes := map[digest.Digest]int64{}
	for r, err := range oci.References(manifest.Content) {
		if err != nil {
			clear(sizes)
			break
		}
		sizes[r.Digest] = r.Size
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for d, size := range sizes {
		if len(m.sizes) >= maxSizes {
			clear(m.sizes)
		}
		m.sizes[d] = size
	}
	name := manifestName{repository, manifest.Digest}
	if _, known := m.manifests[name]; known || manifest.Size > maxMemoryBytes {
		return
	}
	for other := range m.manifests {
		if m.bytes+manifest.Size <= maxMemoryBytes {
			break
		}
		m.drop(other)
	}
	m.manifests[name] = manifest
	m.bytes += manifest.Size
}

// contradicts says that content of this size, in bytes, is not all of what an image wants. Files are compared with that
// when they are opened, because a volume that was damaged would otherwise break the image on all nodes for good.
func (m *memory) contradicts(d digest.Digest, size int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	want, known := m.sizes[d]
	return known && size != want
}

// verified tells the size of content that has the digest, whatever manifests say.
func (m *memory) verified(d digest.Digest, size int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.sizes[d]; known {
		m.sizes[d] = size
	}
}

func (m *memory) remove(repository string, d digest.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drop(manifestName{repository, d})
}

// drop is called with the lock.
func (m *memory) drop(name manifestName) {
	if manifest, known := m.manifests[name]; known {
		m.bytes -= manifest.Size
		delete(m.manifests, name)
	}
}
