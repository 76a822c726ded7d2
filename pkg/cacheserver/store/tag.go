// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"hash/maphash"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

// tags writes the tags of a volume. A tag consists of several files, so changes of one repository are serialised. Tags
// are used only while the upstream is unavailable, so they are written without fsync.
type tags struct {
	*disk
	seed  maphash.Seed
	locks [64]sync.Mutex // by hash of the repository
}

func newTags(d *disk) *tags { return &tags{disk: d, seed: maphash.MakeSeed()} }

func (t *tags) lock(repository string) (unlock func()) {
	mu := &t.locks[maphash.String(t.seed, repository)%uint64(len(t.locks))]
	mu.Lock()
	return mu.Unlock
}

// set points the tag to d. It writes nothing if the tag already does.
func (t *tags) set(repository, tag string, d digest.Digest) error {
	defer t.lock(repository)()
	if current, err := t.reader.ReadTag(repository, tag); err == nil && current == d {
		return nil
	}
	l := evict.Link{Kind: evict.Tag, Repository: repository, Tag: tag}
	for _, path := range []string{t.layout.Link(l, d), t.layout.TagLink(repository, tag)} {
		if err := t.write(path, []byte(d), volatile); err != nil {
			return err
		}
	}
	return nil
}

// remove deletes a tag. A missing tag is no error.
func (t *tags) remove(repository, tag string) error {
	defer t.lock(repository)()
	return t.removeFiles(repository, tag)
}

// removeFor deletes the tag if it points to d. Otherwise it deletes the record that the tag has pointed to d.
func (t *tags) removeFor(l evict.Link, d digest.Digest) error {
	defer t.lock(l.Repository)()
	if current, err := t.reader.ReadTag(l.Repository, l.Tag); err == nil && current == d {
		return t.removeFiles(l.Repository, l.Tag)
	}
	return t.removeUpTo(t.layout.Link(l, d), t.layout.Repositories())
}

// removeCorrupt deletes a tag that contains no digest, unless it was set concurrently.
func (t *tags) removeCorrupt(repository, tag string) error {
	defer t.lock(repository)()
	if _, err := t.reader.ReadTag(repository, tag); err == nil {
		return nil
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	return t.removeFiles(repository, tag)
}

// removeFiles deletes the files of a tag. The caller holds the lock of the repository.
func (t *tags) removeFiles(repository, tag string) error {
	// The link first: without it, the remaining files are no tag.
	if err := t.removeIfExists(t.layout.TagLink(repository, tag)); err != nil {
		return fmt.Errorf("removing tag %s:%s: %w", repository, tag, err)
	}
	dir := t.layout.Tag(repository, tag)
	if err := t.fs.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing tag %s:%s: %w", repository, tag, err)
	}
	t.prune(filepath.Dir(dir), t.layout.Repositories())
	return nil
}
