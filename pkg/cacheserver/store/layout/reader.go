// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/oci"
)

// maxLinkSize bounds the file of a link, in bytes. A valid one has 71 bytes.
const maxLinkSize = 256

// ErrNotFound is wrapped by errors about content, links and tags that do not exist or are corrupt.
var ErrNotFound = errors.New("not in the store")

// FS contains the file system calls of a Reader. *volume.FS implements it. It must be safe for concurrent use.
type FS interface {
	// ReadFile returns the content of a file of at most limit bytes. Errors about larger files wrap
	// volume.ErrTooLarge.
	ReadFile(path string, limit int64) ([]byte, error)
	Stat(path string) (fs.FileInfo, error)
	ReadDir(path string) ([]fs.DirEntry, error)
}

// Reader reads the files of a volume. It changes nothing. It is safe for concurrent use.
type Reader struct {
	Root
	FS FS
}

// CheckLink returns an error unless the file of the link exists and contains d. Errors wrap ErrNotFound if it does not exist or
// contains something else.
func (r Reader) CheckLink(l evict.Link, d digest.Digest) error {
	content, err := r.readSmall(r.Link(l, d))
	if err != nil {
		return err
	}
	if content != d.String() {
		return fmt.Errorf("%w: the link contains another digest", ErrNotFound)
	}
	return nil
}

// ReadTag returns the digest of a tag. Errors wrap ErrNotFound if the tag does not exist or contains no digest.
func (r Reader) ReadTag(repository, tag string) (digest.Digest, error) {
	content, err := r.readSmall(r.TagLink(repository, tag))
	if err != nil {
		return "", fmt.Errorf("reading tag %s:%s: %w", repository, tag, err)
	}
	d, err := oci.ParseDigest(content)
	if err != nil {
		return "", fmt.Errorf("reading tag %s:%s: %w: %w", repository, tag, ErrNotFound, err)
	}
	return d, nil
}

// ReadManifest returns the content of a manifest after verification of its digest. Errors wrap ErrNotFound if it does not
// exist, has another digest, or is larger than oci.MaxManifestSize.
func (r Reader) ReadManifest(d digest.Digest) ([]byte, error) {
	content, err := r.readBounded(r.Data(d), oci.MaxManifestSize)
	if err != nil {
		return nil, err
	}
	if digest.SHA256.FromBytes(content) != d {
		return nil, fmt.Errorf("%w: the content has another digest", ErrNotFound)
	}
	return content, nil
}

// ReadDir returns the entries of a directory, none if it does not exist.
func (r Reader) ReadDir(path string) ([]fs.DirEntry, error) {
	entries, err := r.FS.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return entries, err
}

func (r Reader) readSmall(path string) (string, error) {
	content, err := r.readBounded(path, maxLinkSize)
	return string(content), err
}

func (r Reader) readBounded(path string, limit int64) ([]byte, error) {
	content, err := r.FS.ReadFile(path, limit)
	return content, NotFound(err)
}

// NotFound wraps ErrNotFound around errors about files that do not exist or are too large. It returns other errors, and
// nil, unchanged.
func NotFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, volume.ErrTooLarge) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}
