// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/store/layout"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

// Content is an open file with content. It is not evicted before Close.
type Content struct {
	*volume.File
	store  *Store
	digest digest.Digest
}

// Close implements io.Closer.
func (c *Content) Close() error {
	err := c.File.Close()
	if errors.Is(err, os.ErrClosed) {
		return err
	}
	c.store.release(c.digest)
	return err
}

// openPinned pins and opens content, unless allowed returns an error.
func (s *Store) openPinned(d digest.Digest, allowed func() error) (*Content, error) {
	s.pin(d)
	err := allowed()
	if err == nil {
		var f *volume.File
		if f, err = s.open(d); err == nil {
			return &Content{File: f, store: s, digest: d}, nil
		}
	}
	s.release(d)
	return nil, err
}

func (s *Store) pin(d digest.Digest) { s.index.Pin(d, s.Collector().Now()) }

func (s *Store) release(d digest.Digest) { s.index.Unpin(d, s.Collector().Now()) }

// EmptyDigest is the digest of empty content.
const EmptyDigest = digest.Digest("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")

func (s *Store) open(d digest.Digest) (*volume.File, error) {
	f, err := s.fs.Open(s.layout.Data(d))
	if err != nil {
		return nil, layout.NotFound(err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%w: not a regular file", ErrNotFound)
	case info.Size() == 0 && d != EmptyDigest:
		// A power failure can leave an empty file if it was renamed without fsync.
		err = fmt.Errorf("%w: the file is empty", ErrNotFound)
	default:
		err = s.checkSize(d, info)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// stored updates the index after content was written, successfully or not. The caller has pinned the digest.
func (s *Store) stored(d digest.Digest) {
	info, err := s.fs.Stat(s.layout.Data(d))
	if err != nil {
		return // the caller returns the error of the write
	}
	s.index.SetStored(d, info.Size())
	s.Collector().Grown()
}
