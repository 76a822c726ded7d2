package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/oci"
)

// walk tells the index what is on the volume, while the store is used. If something may be deleted, it deletes what
// nobody can use: folders without content, tags that name nothing, and uploads that another server has not finished.
// Folders that cannot be read are left out, but an error is returned if nothing could be.
func (s *Store) walk(ctx context.Context) error {
	w := &walker{store: s, now: time.Now(), uses: s.loadUses()}
	// First the content: what is stored meanwhile tells the index itself.
	prefixes, err := readDir(s.layout.blobs())
	if err != nil {
		return fmt.Errorf("indexing blobs: %w", err)
	}
	for _, prefix := range prefixes {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		w.blobs(filepath.Join(s.layout.blobs(), prefix.Name()))
	}
	if _, err := readDir(s.layout.repositories()); err != nil {
		return fmt.Errorf("indexing repositories: %w", err)
	}
	w.repositories(ctx, "")
	return context.Cause(ctx)
}

type walker struct {
	store *Store
	now   time.Time
	uses  map[digest.Digest]time.Time
}

// deletes says whether anything may be deleted.
func (w *walker) deletes() bool { return w.store.policy.TTL > 0 }

func (w *walker) warn(err error) { w.store.log.Warn("Cannot read a part of the volume", "error", err) }

// blobs finds the content whose digest begins with the name of the folder.
func (w *walker) blobs(dir string) {
	for d := range w.digests(dir) {
		path := w.store.layout.data(d)
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist) && w.deletes():
			// Somebody may just be filling it; then it is not empty, or is made again.
			if err := os.Remove(filepath.Dir(path)); err != nil && !isNotEmpty(err) && !errors.Is(err, fs.ErrNotExist) {
				w.warn(err)
			}
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			w.warn(err)
		default:
			w.store.index.Found(d, info.Size(), w.lastUse(d, info))
		}
	}
}

// lastUse returns what was recorded, or else when the file was last read or written as far as the volume tells.
func (w *walker) lastUse(d digest.Digest, info fs.FileInfo) time.Time {
	last, recorded := w.uses[d]
	if !recorded {
		last = info.ModTime()
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			if read := time.Unix(stat.Atim.Unix()); read.After(last) {
				last = read
			}
		}
	}
	if last.After(w.now) {
		return w.now // a clock was wrong
	}
	return last
}

// repositories finds the links of a repository, "" for none, and of those whose name begins with its.
func (w *walker) repositories(ctx context.Context, name string) {
	if ctx.Err() != nil {
		return
	}
	entries, err := readDir(w.store.layout.repository(name))
	if err != nil {
		w.warn(err)
		return
	}
	for _, entry := range entries {
		// The names of repositories have a limit, and so has the depth.
		if below := strings.TrimPrefix(name+"/"+entry.Name(), "/"); entry.IsDir() && oci.ValidateRepository(below) == nil {
			w.repositories(ctx, below)
		}
	}
	if name == "" {
		return
	}
	w.links(evict.Link{Kind: evict.Layer, Repository: name}, "_layers")
	w.links(evict.Link{Kind: evict.Revision, Repository: name}, "_manifests/revisions")
	w.tags(name)
	if w.deletes() {
		if err := os.RemoveAll(w.store.layout.repository(name, "_uploads")); err != nil {
			w.warn(err)
		}
		prune(w.store.layout.repository(name), w.store.layout.repositories())
	}
}

func (w *walker) links(l evict.Link, folder string) {
	for d := range w.digests(w.store.layout.repository(l.Repository, folder, "sha256")) {
		w.store.index.Link(d, l)
	}
}

func (w *walker) tags(repository string) {
	tags, err := readDir(w.store.layout.repository(repository, "_manifests/tags"))
	if err != nil {
		w.warn(err)
		return
	}
	for _, entry := range tags {
		tag := entry.Name()
		if ref, err := oci.ParseReference(tag); err != nil || ref.Tag != tag {
			continue
		}
		link := evict.Link{Kind: evict.Tag, Repository: repository, Tag: tag}
		for d := range w.digests(filepath.Join(w.store.layout.tag(repository, tag), "index/sha256")) {
			w.store.index.Link(d, link)
		}
		d, err := w.store.Tag(repository, tag)
		switch {
		case err == nil:
			w.store.index.Link(d, link)
		case errors.Is(err, ErrNotFound) && w.deletes():
			if err := w.store.removeBrokenTag(repository, tag); err != nil {
				w.warn(err)
			}
		case !errors.Is(err, ErrNotFound):
			w.warn(err)
		}
	}
}

// removeBrokenTag removes the tag unless it names something by now.
func (s *Store) removeBrokenTag(repository, tag string) error {
	s.tags.Lock()
	defer s.tags.Unlock()
	if _, err := s.Tag(repository, tag); !errors.Is(err, ErrNotFound) {
		return err
	}
	return s.removeTag(repository, tag)
}

// digests yields the sha256 digests that the folders below dir are named after.
func (w *walker) digests(dir string) func(yield func(digest.Digest) bool) {
	return func(yield func(digest.Digest) bool) {
		entries, err := readDir(dir)
		if err != nil {
			w.warn(err)
		}
		for _, entry := range entries {
			d, err := oci.ParseDigest("sha256:" + entry.Name())
			if err == nil && entry.IsDir() && !yield(d) {
				return
			}
		}
	}
}

// readDir is os.ReadDir for folders that may be missing.
func readDir(dir string) ([]fs.DirEntry, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return entries, err
}

func isNotEmpty(err error) bool {
	return errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EEXIST)
}
