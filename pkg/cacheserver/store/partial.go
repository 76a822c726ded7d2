// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"
)

// Partial is a blob that is being written. Write, Verify and Commit belong to one goroutine; ReadAt may be called by
// many meanwhile, and until Close.
type Partial struct {
	store     *Store
	file      File
	digest    digest.Digest
	hash      digest.Digester
	verified  bool
	committed bool
}

// Create starts the blob with the digest, which is not deleted before Close. The caller closes it.
func (s *Store) Create(d digest.Digest) (*Partial, error) {
	s.pin(d)
	f, err := s.create(d.Encoded() + "-")
	if err != nil {
		s.release(d)
		return nil, fmt.Errorf("creating blob %s: %w", d, err)
	}
	return &Partial{store: s, file: f, digest: d, hash: digest.SHA256.Digester()}, nil
}

// Write appends to the blob. After an error nothing more can be written.
func (p *Partial) Write(b []byte) (int, error) {
	n, err := p.file.Write(b)
	if err != nil {
		p.store.noticeFull(err)
		return n, fmt.Errorf("writing blob %s: %w", p.digest, err)
	}
	return p.hash.Hash().Write(b)
}

// ReadAt reads what has been written.
func (p *Partial) ReadAt(b []byte, offset int64) (int, error) { return p.file.ReadAt(b, offset) }

// Verify returns an error that wraps ErrDigestMismatch unless all that was written has the digest.
func (p *Partial) Verify() error {
	if got := p.hash.Digest(); got != p.digest {
		return fmt.Errorf("verifying blob %s: %w: %s", p.digest, ErrDigestMismatch, got)
	}
	p.verified = true
	return nil
}

// Commit makes the blob part of the store, for the repositories. It needs Verify before.
func (p *Partial) Commit(repositories []string) error {
	if !p.verified {
		return fmt.Errorf("committing blob %s: it was not verified", p.digest)
	}
	err := p.store.publish(p.file, p.store.layout.Data(p.digest))
	p.store.stored(p.digest)
	if err != nil {
		return fmt.Errorf("committing blob %s: %w", p.digest, err)
	}
	p.committed = true
	for _, repository := range repositories {
		if err := p.store.LinkBlob(repository, p.digest); err != nil {
			return err
		}
	}
	return nil
}

// Discard removes the file unless it was committed. What was written stays readable until Close.
func (p *Partial) Discard() error {
	if p.committed {
		return nil
	}
	return removeIfExists(p.file.Name())
}

// Close releases the file. Call Discard before, unless it was committed.
func (p *Partial) Close() error {
	err := p.file.Close()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	p.store.release(p.digest)
	if err != nil {
		return fmt.Errorf("closing blob %s: %w", p.digest, err)
	}
	return nil
}
