// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

// droppedCounter counts the deletions of corrupt content.
type droppedCounter struct {
	noCollector
	dropped int
}

func (c *droppedCounter) Dropped(evict.Victim, string) { c.dropped++ }

// A request and the verification can detect the same corrupt file. The second deletion would meet the content that is
// being downloaded to replace it.
func TestCorruptFileIsDroppedOnce(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := open(t, root, Options{})
	counter := &droppedCounter{}
	s.collector.set(counter)
	commit(t, s, repository)
	f, err := os.Open(filepath.Join(root, layerFile))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // as the verification does, so that no other file gets the same inode
	read, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Drop(layerDigest, read, "test"); err != nil {
			t.Error(err)
		}
	}
	if counter.dropped != 1 {
		t.Errorf("dropped %d times, want once", counter.dropped)
	}
}

// The deletion of a corrupt file must not delete the file that replaces it at the same time.
func TestReplacementOfCorruptFileStays(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := open(t, root, Options{})
	path := filepath.Join(root, manifestFile)
	for i := range 200 {
		if err := s.PutManifest(repository, manifestDigest, []byte(manifest)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, len(manifest)), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := s.Content(manifestDigest)
		if err != nil {
			t.Fatal(err)
		}
		var concurrent errgroup.Group
		concurrent.Go(func() error {
			_, err := s.Verify(t.Context(), f, manifestDigest, func() {})
			return err
		})
		concurrent.Go(func() error { return s.PutManifest(repository, manifestDigest, []byte(manifest)) })
		if err := errors.Join(concurrent.Wait(), f.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Manifest(repository, manifestDigest); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
	}
}

// The index has the size of the previous file until the new one was measured. A request in between must not delete the new one.
func TestReplacementOfTruncatedFileStays(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Options{})
	for i := range 200 {
		s.index.AddContent(manifestDigest, 1, time.Now())
		written := make(chan struct{})
		var concurrent errgroup.Group
		concurrent.Go(func() error {
			defer close(written)
			return s.PutManifest(repository, manifestDigest, []byte(manifest))
		})
		concurrent.Go(func() error {
			for {
				f, err := s.Content(manifestDigest)
				if err == nil {
					err = f.Close()
				}
				if err != nil && !isNotFound(err) {
					return err
				}
				select {
				case <-written:
					return nil
				default:
				}
			}
		})
		if err := concurrent.Wait(); err != nil {
			t.Fatal(err)
		}
		f, err := s.Content(manifestDigest)
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		info, err := f.Stat()
		if err == nil {
			err = s.Drop(manifestDigest, info, "the next round begins without it")
		}
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}
