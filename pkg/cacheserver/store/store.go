// SPDX-License-Identifier: Apache-2.0

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
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/oci"
)

// ErrNotFound is wrapped by the errors about what the store does not have, or has only broken.
var ErrNotFound = errors.New("not in the store")

// Options are the optional parts of a Store.
type Options struct {
	// CreateFile makes a new file in dir whose name starts with prefix, for everything that is written. Default:
	// os.CreateTemp. Tests let it fail.
	CreateFile func(dir, prefix string) (File, error)
	// RemoveFile removes a file that Maintain deletes. Default: os.Remove. Tests let it fail.
	RemoveFile func(path string) error
	// Policy says what Maintain deletes. The zero value deletes nothing.
	Policy evict.Policy
	// Volume measures the volume. Default: statfs of the root.
	Volume func() (evict.Volume, error)
	// Logger gets what Maintain does. Default: discarded.
	Logger *slog.Logger
	// Registerer gets the metrics. Default: none.
	Registerer prometheus.Registerer
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
	removeFile func(path string) error
	policy     evict.Policy
	volume     func() (evict.Volume, error)
	log        *slog.Logger
	metrics    *metrics
	index      *evict.Index

	// grown and full have one element at most: something was stored, a write found the volume full.
	grown, full chan struct{}
	demands     chan demand
	learned     atomic.Bool // Maintain knows the volume, and answers demands
	tags        sync.Mutex  // serialises changes of tags, which are several files each
}

// Open returns the store in the folder root, which is made if it is missing. It removes what an earlier process left
// unfinished, so one process at a time may use a root. Nothing is deleted later unless Maintain runs.
func Open(root string, o Options) (*Store, error) {
	s := &Store{
		layout:     layout(root),
		createFile: o.CreateFile,
		removeFile: o.RemoveFile,
		policy:     o.Policy,
		volume:     o.Volume,
		log:        o.Logger,
		index:      evict.NewIndex(),
		grown:      make(chan struct{}, 1),
		full:       make(chan struct{}, 1),
		demands:    make(chan demand),
	}
	if s.createFile == nil {
		s.createFile = func(dir, prefix string) (File, error) { return os.CreateTemp(dir, prefix) }
	}
	if s.removeFile == nil {
		s.removeFile = os.Remove
	}
	if s.volume == nil {
		s.volume = func() (evict.Volume, error) { return statVolume(root) }
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.metrics = newMetrics(o.Registerer, s)
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
func (s *Store) Blob(repository string, d digest.Digest) (*Content, error) {
	c, err := s.hold(d, func() error { return s.readLink(s.layout.layerLink(repository, d), d) })
	if err != nil {
		return nil, fmt.Errorf("opening blob %s@%s: %w", repository, d, err)
	}
	return c, nil
}

// Content opens content that any repository has. The caller closes it, and must not show it to those who have not
// proved that they may see it. Errors wrap ErrNotFound where no repository has it.
func (s *Store) Content(d digest.Digest) (*Content, error) {
	c, err := s.hold(d, func() error { return nil })
	if err != nil {
		return nil, fmt.Errorf("opening content %s: %w", d, err)
	}
	return c, nil
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
	f, err := s.hold(d, func() error { return s.readLink(s.layout.revisionLink(repository, d), d) })
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

// UseManifest counts as a use of a manifest that the repository has, for those who have its content already. It returns
// false where that is not known without looking at the volume.
func (s *Store) UseManifest(repository string, d digest.Digest) bool {
	return s.index.Use(d, evict.Link{Kind: evict.Revision, Repository: repository}, time.Now())
}

// Tag returns the digest that the tag had when SetTag was called. Errors wrap ErrNotFound where it was not.
func (s *Store) Tag(repository, tag string) (digest.Digest, error) {
	return readTag(s.layout, repository, tag)
}

func readTag(l layout, repository, tag string) (digest.Digest, error) {
	content, err := readSmall(l.tagLink(repository, tag))
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
	s.index.Hold(d, time.Now())
	defer s.release(d)
	if current, err := s.Tag(repository, tag); err == nil && current == d {
		return nil
	}
	s.index.Link(d, evict.Link{Kind: evict.Tag, Repository: repository, Tag: tag})
	s.tags.Lock()
	defer s.tags.Unlock()
	for _, path := range []string{s.layout.tagIndexLink(repository, tag, d), s.layout.tagLink(repository, tag)} {
		if err := s.writeFile(path, []byte(d)); err != nil {
			return fmt.Errorf("setting tag %s:%s: %w", repository, tag, err)
		}
	}
	return nil
}

// RemoveTag forgets the tag; a missing one is no error.
func (s *Store) RemoveTag(repository, tag string) error {
	s.tags.Lock()
	defer s.tags.Unlock()
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
	s.index.Hold(d, time.Now())
	defer s.release(d)
	// What is there may be broken, so it is compared rather than trusted.
	if stored, err := readBounded(s.layout.data(d), oci.MaxManifestSize); err != nil || !bytes.Equal(stored, content) {
		err := s.writeFile(s.layout.data(d), content)
		s.stored(d)
		if err != nil {
			return fmt.Errorf("storing manifest %s@%s: %w", repository, d, err)
		}
	}
	if err := s.link(evict.Link{Kind: evict.Revision, Repository: repository}, d); err != nil {
		return fmt.Errorf("linking manifest %s@%s: %w", repository, d, err)
	}
	return nil
}

// LinkBlob gives the repository a blob whose content is stored.
func (s *Store) LinkBlob(repository string, d digest.Digest) error {
	s.index.Hold(d, time.Now())
	defer s.release(d)
	if err := s.link(evict.Link{Kind: evict.Layer, Repository: repository}, d); err != nil {
		return fmt.Errorf("linking blob %s@%s: %w", repository, d, err)
	}
	return nil
}

// link makes a link of the kind Layer or Revision. The caller holds the digest.
func (s *Store) link(l evict.Link, d digest.Digest) error {
	// Told before it is made, so that it goes with the content even if this fails half-way.
	s.index.Link(d, l)
	path := s.layout.link(l, d)
	if s.readLink(path, d) == nil {
		return nil
	}
	if err := s.writeFile(path, []byte(d)); err != nil {
		s.index.Doubt(d, l)
		return err
	}
	// Somebody else may have failed with it meanwhile.
	s.index.Link(d, l)
	return nil
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
