// SPDX-License-Identifier: Apache-2.0

// Package discard is a content store that verifies all content and stores only manifests, which a pull has to read
// again. Many simulated nodes can therefore run with little disk space and memory. The Go types of containerd's
// interfaces differ between containerd 1.7 and 2.x, so each command has its own adapter.
package discard

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxManifestSize is the size of the largest manifest that is stored, in bytes. The OCI distribution specification
// recommends support for manifests of at least 4 MB; this is twice as much.
const maxManifestSize = 8 << 20

// Store stores the manifests of one pull in memory. The zero value is empty. It is safe for concurrent use.
type Store struct {
	mu        sync.Mutex               // guards the fields below
	committed map[digest.Digest][]byte // by digest; the value is nil for a blob
	open      map[string]bool          // references that have an open Writer
}

// Writer returns a writer for content with descriptor d. The content is stored if isManifest is set, otherwise it is
// only verified. The caller closes the writer. As in containerd's stores, the errors are errdefs.ErrAlreadyExists, and
// errdefs.ErrUnavailable if the reference has an open writer.
func (s *Store) Writer(ref string, d ocispec.Descriptor, isManifest bool) (*Writer, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("writing %s: %w", ref, err)
	}
	if isManifest && d.Size > maxManifestSize {
		return nil, fmt.Errorf("writing %s: manifest of %d bytes: must be no more than %d bytes", ref, d.Size, maxManifestSize)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.committed[d.Digest]; ok {
		return nil, fmt.Errorf("content %s: %w", d.Digest, errdefs.ErrAlreadyExists)
	}
	if s.open[ref] {
		return nil, fmt.Errorf("reference %s is being written: %w", ref, errdefs.ErrUnavailable)
	}
	if s.open == nil {
		s.open, s.committed = map[string]bool{}, map[digest.Digest][]byte{}
	}
	s.open[ref] = true
	return &Writer{Ref: ref, Total: d.Size, store: s, isManifest: isManifest, digester: d.Digest.Algorithm().Digester()}, nil
}

// Reader returns a reader of a committed manifest, or errdefs.ErrNotFound.
func (s *Store) Reader(d ocispec.Descriptor) (*Reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	content := s.committed[d.Digest]
	if content == nil {
		return nil, fmt.Errorf("content %s: %w", d.Digest, errdefs.ErrNotFound)
	}
	return &Reader{bytes.NewReader(content)}, nil
}

// Reader reads a manifest. Closing it does nothing.
type Reader struct{ *bytes.Reader }

// Close implements io.Closer.
func (*Reader) Close() error { return nil }

// Writer computes the digest of the written bytes. It is not safe for concurrent use.
type Writer struct {
	// Ref is containerd's reference of the write operation.
	Ref string
	// Total is the size in the descriptor, in bytes.
	Total int64
	// Offset is the number of bytes written so far.
	Offset int64

	store      *Store
	isManifest bool
	content    []byte
	digester   digest.Digester
}

// Write implements io.Writer. Writing more than Total bytes is an error.
func (w *Writer) Write(p []byte) (int, error) {
	if int64(len(p)) > w.Total-w.Offset {
		return 0, fmt.Errorf("writing %s: more than %d bytes", w.Ref, w.Total)
	}
	w.Offset += int64(len(p))
	if w.isManifest {
		w.content = append(w.content, p...)
	}
	return w.digester.Hash().Write(p) // a hash.Hash never returns an error
}

// Digest returns the digest of the bytes written so far.
func (w *Writer) Digest() digest.Digest { return w.digester.Digest() }

// Truncate discards all written bytes. The size must be 0; containerd passes no other value.
func (w *Writer) Truncate(size int64) error {
	if size != 0 {
		return errors.New("truncating discarded content: only possible to 0 bytes")
	}
	w.Offset, w.content = 0, nil
	w.digester.Hash().Reset()
	return nil
}

// Commit verifies size and digest of the written bytes and makes a manifest readable. As in containerd's local store, a
// size of 0 and an empty digest are not compared. The error for a mismatch is errdefs.ErrFailedPrecondition.
func (w *Writer) Commit(size int64, expected digest.Digest) error {
	if size > 0 && size != w.Offset {
		return fmt.Errorf("committing %s: %d bytes, want %d: %w", w.Ref, w.Offset, size, errdefs.ErrFailedPrecondition)
	}
	got := w.Digest()
	if expected != "" && got != expected {
		return fmt.Errorf("committing %s: digest %s, want %s: %w", w.Ref, got, expected, errdefs.ErrFailedPrecondition)
	}
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	w.store.committed[got] = w.content
	return nil
}

// Close releases the reference. Content that was not committed is discarded.
func (w *Writer) Close() error {
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	delete(w.store.open, w.Ref)
	return nil
}
