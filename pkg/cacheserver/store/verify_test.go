// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/cacheserver/volume/volumetest"
)

// A verification is remembered until the file is replaced or dropped: it does not concern another file.
func TestVerifiedSince(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := open(t, root, Options{})
	put := func() {
		t.Helper()
		if err := s.PutManifest(repository, manifestDigest, []byte(manifest)); err != nil {
			t.Fatal(err)
		}
	}
	verify := func() (intact bool) {
		t.Helper()
		f, err := s.Content(manifestDigest)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		intact, err = s.Verify(t.Context(), f, manifestDigest, func() {})
		if err != nil {
			t.Fatal(err)
		}
		return intact
	}
	expect := func(situation string, since time.Time, want bool) {
		t.Helper()
		if got := s.VerifiedSince(manifestDigest, since); got != want {
			t.Errorf("%s: verified %t, want %t", situation, got, want)
		}
	}
	start := time.Now()

	put()
	expect("never verified", start, false)
	if !verify() {
		t.Fatal("intact content is corrupt")
	}
	expect("verified", start, true)
	expect("verified earlier", time.Now(), false)

	corrupt := func() {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, manifestFile), make([]byte, len(manifest)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	corrupt()
	put()
	expect("replaced", start, false)
	if !verify() {
		t.Fatal("replaced content is corrupt")
	}
	corrupt()
	if verify() {
		t.Fatal("corrupt content is intact")
	}
	expect("corrupt", start, false)
}

// detections are the ways in which a failed read of the layer is detected.
var detections = map[string]func(*testing.T, *Store, *Content) error{
	"verified": func(t *testing.T, s *Store, c *Content) error {
		_, err := s.Verify(t.Context(), c, layerDigest, func() {})
		return err
	},
	"served": func(t *testing.T, s *Store, c *Content) error {
		_, readErr := c.Read(make([]byte, 1))
		began := time.Now()
		if err := c.Suspect(readErr); err != nil {
			return err
		}
		if _, err := s.Content(layerDigest); !errors.Is(err, ErrNotFound) || time.Since(began) > 0 {
			t.Errorf("before the examination: %v, after %s", err, time.Since(began))
		}
		return examine(t, s)
	},
}

// examine examines the layer until there is a result.
func examine(t *testing.T, s *Store) error {
	return Conclude(t.Context(), func() error { return s.Examine(t.Context(), layerDigest) })
}

// A volume that fails for a short time is no reason to delete intact content.
func TestFailingVolumeDropsNothing(t *testing.T) {
	t.Parallel()
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.EUCLEAN, syscall.ESTALE, syscall.ETIMEDOUT, syscall.ENXIO, syscall.ENOMEM} {
		for name, detect := range detections {
			t.Run(fmt.Sprintf("%s, %s", errno, name), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					var fails atomic.Bool
					s := open(t, t.TempDir(), Options{Volume: volumetest.Monitored(t, volumetest.While(&fails, volumetest.Fail(errno, volume.OpRead)))})
					commit(t, s, repository)
					c, err := s.Content(layerDigest)
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					fails.Store(true)
					recovers := time.AfterFunc(time.Second, func() { fails.Store(false) })
					defer recovers.Stop()
					if err := detect(t, s, c); err != nil && !errors.Is(err, errno) {
						t.Error(err)
					}
					fails.Store(false)
					if got := readBlob(t, s, repository); got != layer {
						t.Errorf("got %q", got)
					}
				})
			})
		}
	}
}

// Content that cannot be read, on a volume whose other files can be read, is corrupt.
func TestUnreadableContentIsDropped(t *testing.T) {
	t.Parallel()
	for name, detect := range detections {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := open(t, t.TempDir(), Options{Volume: volumetest.Monitored(t, func(op volume.Op, path string) error {
					if op == volume.OpRead && strings.HasSuffix(path, "/data") {
						return syscall.EIO
					}
					return nil
				})})
				commit(t, s, repository)
				c, err := s.Content(layerDigest)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if err := detect(t, s, c); err != nil {
					t.Error(err)
				}
				if _, err := s.Content(layerDigest); !errors.Is(err, ErrNotFound) {
					t.Errorf("the content is stored: %v", err)
				}
			})
		})
	}
}

// Content that is known to be corrupt, on a volume that does not permit its deletion, is read once.
func TestExaminationEndsIfNothingCanBeDeleted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		var readOnly atomic.Bool
		s := open(t, root, Options{Volume: volumetest.Monitored(t, volumetest.While(&readOnly, volumetest.Fail(syscall.EROFS, volume.OpRemove)))})
		commit(t, s, repository)
		readOnly.Store(true)
		if err := os.WriteFile(s.layout.Data(layerDigest), make([]byte, len(layer)), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := s.Content(layerDigest)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Suspect(syscall.EIO); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := examine(t, s); !errors.Is(err, syscall.EROFS) || time.Since(began) > 30*time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		if _, err := s.Content(layerDigest); !errors.Is(err, ErrNotFound) {
			t.Errorf("the corrupt content is served: %v", err)
		}
	})
}
