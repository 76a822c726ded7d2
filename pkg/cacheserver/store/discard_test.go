// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/cacheserver/volume/volumetest"
)

// Files of downloads and of writes that ended while the volume failed are deleted when it can be used again.
func TestUndeletedFilesAreDeletedLater(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*Store, *Incoming) error{
		"discarded": func(_ *Store, i *Incoming) error { return errors.Join(i.Discard(), i.Close()) },
		"not kept":  func(_ *Store, i *Incoming) error { return errors.Join(i.Keep(progressOf(4)), i.Close()) },
		"manifest": func(s *Store, i *Incoming) error {
			return errors.Join(s.PutManifest(repository, manifestDigest, []byte(manifest)), i.Discard(), i.Close())
		},
	} {
		for _, fault := range []error{syscall.EIO, syscall.EROFS} {
			t.Run(name+", "+fault.Error(), func(t *testing.T) {
				t.Parallel()
				var fails atomic.Bool
				s, root := openOn(t, volume.Options{Fault: volumetest.While(&fails, volumetest.Fail(fault, volume.OpRemove, volume.OpRename))})
				i := receive(t, s, layer[:4])
				if err := i.Record(progressOf(4)); err != nil {
					t.Fatal(err)
				}
				fails.Store(true)
				if err := end(s, i); !errors.Is(err, fault) {
					t.Fatal(err)
				}
				s.discardAgain()
				if got := partialFiles(t, root); len(got) < 2 {
					t.Fatalf("the volume does not fail: %v", got)
				}
				fails.Store(false)
				s.discardAgain()
				if got := partialFiles(t, root); len(got) > 0 {
					t.Errorf("left: %v", got)
				}
				if got := s.undeleted.list(); len(got) > 0 {
					t.Errorf("still remembered: %v", got)
				}
			})
		}
	}
}

// A partial download that cannot be opened because the volume fails is continued later.
func TestPartialSurvivesFailingVolume(t *testing.T) {
	t.Parallel()
	for _, ops := range [][]volume.Op{volume.Ops(), {volume.OpOpen}, {volume.OpRead}, {volume.OpLock}} {
		t.Run(string(ops[0]), func(t *testing.T) {
			t.Parallel()
			var fails atomic.Bool
			s := open(t, t.TempDir(), Options{Volume: volumetest.New(t, volumetest.While(&fails, volumetest.Fail(syscall.EIO, ops...)))})
			i := receive(t, s, layer[:4])
			if err := errors.Join(i.Keep(progressOf(4)), i.Close()); err != nil {
				t.Fatal(err)
			}
			fails.Store(true)
			if i, _, err := s.Receive(layerDigest); err == nil {
				if err := errors.Join(i.Discard(), i.Close()); err != nil {
					t.Fatal(err)
				}
			}
			fails.Store(false)
			i, progress, err := s.Receive(layerDigest)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(progressOf(4), progress); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
			if err := errors.Join(i.Discard(), i.Close()); err != nil {
				t.Fatal(err)
			}
			if got := s.partials.total(); got != 0 {
				t.Errorf("%d bytes are counted", got)
			}
		})
	}
}
