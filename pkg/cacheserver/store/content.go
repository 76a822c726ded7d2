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

// Content is an open file with content. It is not evicted before Close, but it can be dropped because it is corrupt.
type Content struct {
	*volume.File
	contents *contents
	digest   digest.Digest
}

// Digest returns the digest of the content.
func (c *Content) Digest() digest.Digest { return c.digest }

// Close implements io.Closer.
func (c *Content) Close() error {
	err := c.File.Close()
	if errors.Is(err, os.ErrClosed) {
		return err
	}
	c.contents.release(c.digest)
	return err
}

// openPinned pins and opens content, unless allowed returns an error. Content that is being removed is not found: its removal
// can take long, and deletes its links first.
func (c *contents) openPinned(d digest.Digest, allowed func() error) (*Content, error) {
	if !c.index.TryPin(d, c.collector.get().Now()) {
		return nil, fmt.Errorf("%w: it is being deleted", ErrNotFound)
	}
	err := allowed()
	if err == nil {
		var f *volume.File
		if f, err = c.open(d); err == nil {
			return &Content{File: f, contents: c, digest: d}, nil
		}
	}
	c.release(d)
	return nil, err
}

// Has reports that content of any repository is stored and served. It does not access the volume.
func (c *contents) Has(d digest.Digest) bool {
	_, indexed := c.index.Size(d)
	return indexed && !c.Withholds(d)
}

// Withholds reports that a file with the digest is not served, because it is corrupt or may be.
func (c *contents) Withholds(d digest.Digest) bool { return c.withheld.contains(d) }

// EmptyDigest is the digest of empty content.
const EmptyDigest = digest.Digest("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")

func (c *contents) open(d digest.Digest) (*volume.File, error) {
	f, err := c.fs.Open(c.layout.Data(d))
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
		if err = c.withheld.check(d, info); err == nil {
			err = c.checkSize(d, info)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Suspect notes that a read of the content has failed, so that the file is not served until Examine has found it to be intact. A
// file that was replaced or deleted meanwhile needs no examination. It also reports the error to the volume, which does not see
// errors of sendfile. It must be called before Close.
func (c *Content) Suspect(readErr error) error {
	c.contents.fs.ReportRead(readErr)
	info, err := c.Stat()
	if err != nil {
		return fmt.Errorf("examining %s: %w", c.digest, err)
	}
	c.contents.suspect(c.digest, info)
	return nil
}

// Served notes that a client has read the content, or a part of it. If the last verification is not recent, the content is
// compared with its digest in the background, and dropped if it is corrupt, so that other clients do not receive it. It does
// not block.
func (c *Content) Served() { c.contents.collector.get().Served(c.digest) }
