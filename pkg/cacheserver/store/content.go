// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
)

// Content is a file of the store, which is not deleted before Close.
type Content struct {
	*os.File
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

// hold opens content if what is allowed does not refuse it.
func (s *Store) hold(d digest.Digest, allowed func() error) (*Content, error) {
	s.index.Hold(d, time.Now())
	err := allowed()
	if err == nil {
		var f *os.File
		if f, err = s.open(d); err == nil {
			return &Content{File: f, store: s, digest: d}, nil
		}
	}
	s.release(d)
	return nil, err
}

func (s *Store) release(d digest.Digest) { s.index.Release(d, time.Now()) }

// emptyDigest is the digest of no bytes.
const emptyDigest = digest.Digest("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")

func (s *Store) open(d digest.Digest) (*os.File, error) {
	f, err := os.Open(s.layout.data(d))
	if err != nil {
		return nil, notFound(err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() == 0 && d != emptyDigest {
		// What a power failure leaves of a file that was renamed without being flushed.
		err = fmt.Errorf("%w: the file is empty", ErrNotFound)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// stored tells the index what is on the volume after content was written, or was tried to be. The caller holds the
// digest.
func (s *Store) stored(d digest.Digest) {
	info, err := os.Stat(s.layout.data(d))
	if err != nil {
		return // the one who writes has the error that matters
	}
	s.index.Stored(d, info.Size())
	signal(s.grown)
}

// noticeFull makes Maintain free space if the error of a write says that there is none.
func (s *Store) noticeFull(err error) {
	if isFull(err) {
		signal(s.full)
	}
}

// signal leaves one element in the channel.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
