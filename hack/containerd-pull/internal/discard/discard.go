// SPDX-License-Identifier: Apache-2.0

// Package discard is a content store that verifies everything and keeps only what the pull has to read again, so that
// a herd costs neither disk nor memory. Containerd's lines differ in the Go types of the interfaces around it.
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

// maxManifest bounds what is kept of one manifest, in bytes: twice what registries must accept.
const maxManifest = 8 << 20

// Store has the manifests of a pull in memory. The zero value is empty. It is safe for concurrent use.
type Store struct {
	mu        sync.Mutex               // guards the fields below
	committed map[digest.Digest][]byte // nil for what is not a manifest
	open      map[string]bool          // references with a writer
}

// Writer returns a writer for one object, of which the content is kept if keep is set. The caller closes it. As from
// containerd's stores, the errors are errdefs.ErrAlreadyExists and, for a reference that has a writer,
// errdefs.ErrUnavailable.
func (s *Store) Writer(ref string, d ocispec.Descriptor, keep bool) (*Writer, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("writing %s: %w", ref, err)
	}
	if keep && d.Size > maxManifest {
		return nil, fmt.Errorf("writing %s: %d bytes are too many for a manifest", ref, d.Size)
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
	return &Writer{Ref: ref, Total: d.Size, store: s, keep: keep, digester: d.Digest.Algorithm().Digester()}, nil
}

// Reader returns a manifest that was committed, or errdefs.ErrNotFound.
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

// Writer hashes what is written. It is not safe for concurrent use.
type Writer struct {
	// Ref is the reference of the ingestion; Total its size in bytes by the descriptor.
	Ref   string
	Total int64
	// Offset counts the bytes that were written.
	Offset int64

	store    *Store
	keep     bool
	content  []byte
	digester digest.Digester
}

// Write implements io.Writer. It refuses more than Total.
func (w *Writer) Write(p []byte) (int, error) {
	if int64(len(p)) > w.Total-w.Offset {
		return 0, fmt.Errorf("writing %s: more than %d bytes", w.Ref, w.Total)
	}
	w.Offset += int64(len(p))
	if w.keep {
		w.content = append(w.content, p...)
	}
	return w.digester.Hash().Write(p) // which never fails
}

// Digest returns that of the bytes so far.
func (w *Writer) Digest() digest.Digest { return w.digester.Digest() }

// Truncate starts again from nothing; containerd asks for no other size than 0.
func (w *Writer) Truncate(size int64) error {
	if size != 0 {
		return errors.New("truncating discarded content: only possible to 0 bytes")
	}
	w.Offset, w.content = 0, nil
	w.digester.Hash().Reset()
	return nil
}

// Commit compares size and digest with what was written, as containerd's local store does.
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

// Close ends the writer, committed or not. What was written without commit is lost.
func (w *Writer) Close() error {
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	delete(w.store.open, w.Ref)
	return nil
}
