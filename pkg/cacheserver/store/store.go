// Package store keeps blobs, manifests and tags on a volume, in the layout of the filesystem driver of the
// distribution project (v2), so that either server can take over the volume of the other.
//
// What a name below docker/registry/v2 shows is complete: files are written elsewhere on the volume, flushed, and
// renamed.
package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/oci"
)

// ErrNotFound is wrapped by the errors about what the store does not have, or has only broken.
var ErrNotFound = errors.New("not in the store")

// Options are the optional parts of a Store.
type Options struct {
	// CreateFile makes a new file in dir whose name starts with prefix, for everything that is written. Default:
	// os.CreateTemp. Tests let it fail.
	CreateFile func(dir, prefix string) (File, error)
}

// File is a new file: written by one goroutine, read by many. *os.File is one.
type File interface {
	io.WriteCloser
	io.ReaderAt
	Name() string
	Sync() error
}

// Store is the content of one volume. It is safe for concurrent use. Repository names and tags must be valid by the
// grammar of package oci, because they become paths.
type Store struct {
	layout     layout
	createFile func(dir, prefix string) (File, error)
}

// Open returns the store in the folder root, which is made if it is missing. It removes what an earlier process left
// unfinished, so one process at a time may use a root.
func Open(root string, o Options) (*Store, error) {
	s := &Store{layout: layout(root), createFile: o.CreateFile}
	if s.createFile == nil {
		s.createFile = func(dir, prefix string) (File, error) { return os.CreateTemp(dir, prefix) }
	}
	if err := os.MkdirAll(root, dirMode); err != nil {
		return nil, fmt.Errorf("opening store: %w", err)
	}
	leftovers, err := os.ReadDir(s.layout.partials())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening store: %w", err)
	}
	for _, leftover := range leftovers {
		if err := os.Remove(filepath.Join(s.layout.partials(), leftover.Name())); err != nil {
			return nil, fmt.Errorf("removing an unfinished file: %w", err)
		}
	}
	return s, nil
}

// Check returns an error if the volume cannot be read.
func (s *Store) Check() error {
	_, err := os.Stat(s.layout.partials())
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Stat(string(s.layout))
	}
	return err
}

// Blob opens a blob that the repository has. The caller closes it. Errors wrap ErrNotFound where it does not.
func (s *Store) Blob(repository string, d digest.Digest) (*os.File, error) {
	if err := s.readLink(s.layout.layerLink(repository, d), d); err != nil {
		return nil, fmt.Errorf("opening blob %s@%s: %w", repository, d, err)
	}
	f, err := s.open(d)
	if err != nil {
		return nil, fmt.Errorf("opening blob %s@%s: %w", repository, d, err)
	}
	return f, nil
}

// Content opens content that any repository has. The caller closes it, and must not show it to those who have not
// proved that they may see it. Errors wrap ErrNotFound where no repository has it.
func (s *Store) Content(d digest.Digest) (*os.File, error) {
	f, err := s.open(d)
	if err != nil {
		return nil, fmt.Errorf("opening content %s: %w", d, err)
	}
	return f, nil
}

// Manifest returns a manifest that the repository has, after checking its digest. Errors wrap ErrNotFound where it
// does not.
func (s *Store) Manifest(repository string, d digest.Digest) ([]byte, error) {
	content, err := s.manifest(repository, d)
	if err != nil {
		return nil, fmt.Errorf("reading manifest %s@%s: %w", repository, d, err)
	}
	return content, nil
}

func (s *Store) manifest(repository string, d digest.Digest) ([]byte, error) {
	if err := s.readLink(s.layout.revisionLink(repository, d), d); err != nil {
		return nil, err
	}
	f, err := s.open(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, oci.MaxManifestSize+1))
	if err != nil {
		return nil, err
	}
	if digest.SHA256.FromBytes(content) != d {
		return nil, fmt.Errorf("%w: the content has another digest", ErrNotFound)
	}
	return content, nil
}

// Tag returns the digest that the tag had when SetTag was called. Errors wrap ErrNotFound where it was not.
func (s *Store) Tag(repository, tag string) (digest.Digest, error) {
	content, err := readSmall(s.layout.tagLink(repository, tag))
	if err != nil {
		return "", fmt.Errorf("reading tag %s:%s: %w", repository, tag, err)
	}
	d, err := oci.ParseDigest(content)
	if err != nil {
		return "", fmt.Errorf("reading tag %s:%s: %w: %w", repository, tag, ErrNotFound, err)
	}
	return d, nil
}

// SetTag makes the tag name the digest. It writes nothing where it does already.
func (s *Store) SetTag(repository, tag string, d digest.Digest) error {
	if current, err := s.Tag(repository, tag); err == nil && current == d {
		return nil
	}
	for _, path := range []string{s.layout.tagIndexLink(repository, tag, d), s.layout.tagLink(repository, tag)} {
		if err := s.writeFile(path, []byte(d)); err != nil {
			return fmt.Errorf("setting tag %s:%s: %w", repository, tag, err)
		}
	}
	return nil
}

// RemoveTag forgets the tag; a missing one is no error.
func (s *Store) RemoveTag(repository, tag string) error {
	if err := os.RemoveAll(s.layout.tag(repository, tag)); err != nil {
		return fmt.Errorf("removing tag %s:%s: %w", repository, tag, err)
	}
	return nil
}

// PutManifest stores a manifest of the repository. The content must have the digest.
func (s *Store) PutManifest(repository string, d digest.Digest, content []byte) error {
	if digest.SHA256.FromBytes(content) != d {
		return fmt.Errorf("storing manifest %s@%s: %w", repository, d, ErrDigestMismatch)
	}
	// What is there may be broken, so it is compared rather than trusted.
	if stored, err := readBounded(s.layout.data(d), oci.MaxManifestSize); err != nil || !bytes.Equal(stored, content) {
		if err := s.writeFile(s.layout.data(d), content); err != nil {
			return fmt.Errorf("storing manifest %s@%s: %w", repository, d, err)
		}
	}
	if err := s.link(s.layout.revisionLink(repository, d), d); err != nil {
		return fmt.Errorf("linking manifest %s@%s: %w", repository, d, err)
	}
	return nil
}

// LinkBlob gives the repository a blob whose content is stored.
func (s *Store) LinkBlob(repository string, d digest.Digest) error {
	if err := s.link(s.layout.layerLink(repository, d), d); err != nil {
		return fmt.Errorf("linking blob %s@%s: %w", repository, d, err)
	}
	return nil
}

func (s *Store) link(path string, d digest.Digest) error {
	if s.readLink(path, d) == nil {
		return nil
	}
	return s.writeFile(path, []byte(d))
}

// readLink returns an error unless the link under path names d.
func (s *Store) readLink(path string, d digest.Digest) error {
	content, err := readSmall(path)
	if err != nil {
		return err
	}
	if content != d.String() {
		return fmt.Errorf("%w: the link names something else", ErrNotFound)
	}
	return nil
}

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
