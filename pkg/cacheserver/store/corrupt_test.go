// SPDX-License-Identifier: Apache-2.0

package store

import (
	"os"
	"path/filepath"
	"testing"

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
