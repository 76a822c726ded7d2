// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/cacheserver/volume/volumetest"
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

// While the fsync of a blob takes long, all other calls proceed. Those for the same digest use the file that the blob will
// replace: it is served, and deleted if it is corrupt.
func TestNothingWaitsForFsyncOfBlob(t *testing.T) {
	t.Parallel()
	slow := newSlowSync()
	release := sync.OnceFunc(func() { close(slow.release) })
	defer release()
	syncing := make(chan struct{})
	var isSlow atomic.Bool
	s, root := openOn(t, volume.Options{Timeout: time.Minute, SyncTimeout: time.Minute, Fault: func(op volume.Op, path string) error {
		if op != volume.OpSync || !strings.HasPrefix(filepath.Base(path), layerHex) || !isSlow.Load() {
			return nil
		}
		close(syncing)
		return slow.fault(op, path)
	}})
	commit(t, s, repository)
	i := receive(t, s, layer)
	defer i.Close()
	isSlow.Store(true)
	committed := make(chan error, 1)
	go func() { committed <- i.Commit(layerDigest, int64(len(layer)), []string{repository}) }()
	<-syncing

	proceeds := func(name string, call func() error) {
		t.Helper()
		ended := make(chan error, 1)
		go func() { ended <- call() }()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s waits for the fsync", name)
		}
	}
	proceeds("storing a manifest", func() error { return s.PutManifest(repository, manifestDigest, []byte(manifest)) })
	proceeds("storing a blob", func() error { return commitContent(s, "another layer") })
	proceeds("linking the blob", func() error { return s.LinkBlob("other/repository", layerDigest) })
	proceeds("reading the blob", func() error {
		f, err := s.Blob(repository, layerDigest)
		if err != nil {
			return err
		}
		return f.Close()
	})
	for _, detect := range []string{"reading", "dropping"} {
		if err := os.WriteFile(filepath.Join(root, layerFile), []byte("corrupt"), 0o600); err != nil {
			t.Fatal(err)
		}
		examined, err := os.Stat(filepath.Join(root, layerFile))
		if err != nil {
			t.Fatal(err)
		}
		proceeds(detect+" the corrupt blob", func() error {
			if detect == "dropping" {
				return s.Drop(layerDigest, examined, "test")
			}
			_, err := s.Blob(repository, layerDigest)
			switch {
			case err == nil:
				return errors.New("it is served")
			case errors.Is(err, ErrNotFound):
				return nil
			}
			return err
		})
		if _, err := os.Stat(filepath.Join(root, layerFile)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the corrupt file was not deleted: %v", detect, err)
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, layerFile)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-committed:
		t.Errorf("the blob was committed before its fsync, with the error %v", err)
	default:
	}
	release()
	if err := <-committed; err != nil {
		t.Error(err)
	}
	if got := readBlob(t, s, repository); got != layer {
		t.Errorf("got %q", got)
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
				if err != nil && !errors.Is(err, ErrNotFound) {
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

// A client can still read a file that was deleted because it is corrupt. Its failed read does not concern the file that has replaced
// it, whether that is intact or corrupt itself.
func TestSuspectOfReplacedFile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var readOnly atomic.Bool
		s := open(t, t.TempDir(), Options{Volume: volumetest.Monitored(t, volumetest.While(&readOnly, volumetest.Fail(syscall.EROFS, volume.OpRemove)))})
		commit(t, s, repository)
		before, err := s.Content(layerDigest)
		if err != nil {
			t.Fatal(err)
		}
		defer before.Close()
		drop := func() error {
			info, err := os.Stat(s.layout.Data(layerDigest))
			if err != nil {
				t.Fatal(err)
			}
			return s.Drop(layerDigest, info, "test")
		}
		if err := drop(); err != nil {
			t.Fatal(err)
		}
		commit(t, s, repository)
		if err := before.Suspect(syscall.EIO); err != nil {
			t.Error(err)
		}
		if !s.Has(layerDigest) {
			t.Error("the intact file is withheld")
		}
		readOnly.Store(true)
		if err := drop(); !errors.Is(err, syscall.EROFS) {
			t.Errorf("the deletion of the second file: %v", err)
		}
		if err := before.Suspect(syscall.EIO); err != nil {
			t.Error(err)
		}
		if _, err := s.Content(layerDigest); !errors.Is(err, ErrNotFound) {
			t.Errorf("the corrupt file is served: %v", err)
		}
	})
}
