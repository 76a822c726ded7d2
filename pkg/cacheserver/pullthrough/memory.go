package pullthrough

import (
	"sync"

	"github.com/opencontainers/go-digest"
)

// maxMemoryBytes bounds the content of remembered manifests, in bytes: thousands of them, which have some KiB each.
const maxMemoryBytes = 16 << 20

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
}

func newMemory() *memory { return &memory{manifests: map[manifestName]*Manifest{}} }

func (m *memory) get(repository string, d digest.Digest) *Manifest {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.manifests[manifestName{repository, d}]
}

// put remembers a manifest, which nobody may change any more. Others go for it, whichever they are.
func (m *memory) put(repository string, manifest *Manifest) {
	m.mu.Lock()
	defer m.mu.Unlock()
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
