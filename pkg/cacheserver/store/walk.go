// SPDX-License-Identifier: Apache-2.0

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
	l := learner{s}
	w := &walker{layout: s.layout, now: time.Now(), uses: s.loadUses(), visitor: l}
	if err := w.walk(ctx); err != nil || !l.deletes() {
		return err
	}
	if err := s.removeStockState(); err != nil {
		l.warn(err)
	}
	return nil
}

// walker reads a volume that may change meanwhile, and changes nothing itself.
type walker struct {
	visitor
	layout layout
	now    time.Time
	uses   map[digest.Digest]time.Time
}

// visitor is told what a walk finds, one thing after the other: first all content, then the repositories.
type visitor interface {
	// content is there, whole or not.
	content(d digest.Digest, info fs.FileInfo, lastUse time.Time)
	// noContent: there is a folder for content, and nothing in it.
	noContent(d digest.Digest)
	// link is there to the content, or for a tag the record that it has named it.
	link(d digest.Digest, l evict.Link)
	// tag names the manifest.
	tag(d digest.Digest, l evict.Link)
	// brokenTag names nothing; the error wraps ErrNotFound.
	brokenTag(l evict.Link, err error)
	// repository ends what is told about a repository. Its name may be the one of a folder around repositories only.
	repository(name string)
	// warn tells about what cannot be read.
	warn(err error)
}

func (w *walker) walk(ctx context.Context) error {
	// First the content: what is stored meanwhile tells the index itself.
	prefixes, err := readDir(w.layout.blobs())
	if err != nil {
		return fmt.Errorf("indexing blobs: %w", err)
	}
	for _, prefix := range prefixes {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		w.blobs(filepath.Join(w.layout.blobs(), prefix.Name()))
	}
	if _, err := readDir(w.layout.repositories()); err != nil {
		return fmt.Errorf("indexing repositories: %w", err)
	}
	w.repositories(ctx, "")
	return context.Cause(ctx)
}

// blobs finds the content whose digest begins with the name of the folder.
func (w *walker) blobs(dir string) {
	for d := range w.digests(dir) {
		info, err := os.Stat(w.layout.data(d))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			w.noContent(d)
		case err != nil:
			w.warn(err)
		default:
			w.content(d, info, w.lastUse(d, info))
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
	entries, err := readDir(w.layout.repository(name))
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
	w.repository(name)
}

func (w *walker) links(l evict.Link, folder string) {
	for d := range w.digests(w.layout.repository(l.Repository, folder, "sha256")) {
		w.link(d, l)
	}
}

func (w *walker) tags(repository string) {
	tags, err := readDir(w.layout.repository(repository, "_manifests/tags"))
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
		for d := range w.digests(filepath.Join(w.layout.tag(repository, tag), "index/sha256")) {
			w.link(d, link)
		}
		d, err := readTag(w.layout, repository, tag)
		switch {
		case err == nil:
			w.tag(d, link)
		case errors.Is(err, ErrNotFound):
			w.brokenTag(link, err)
		default:
			w.warn(err)
		}
	}
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

// learner tells the index of a store what is on its volume, and removes what nobody can use.
type learner struct{ *Store }

// deletes says whether anything may be deleted.
func (l learner) deletes() bool { return l.policy.TTL > 0 }

func (l learner) warn(err error) { l.log.Warn("Cannot read a part of the volume", "error", err) }

func (l learner) content(d digest.Digest, info fs.FileInfo, lastUse time.Time) {
	l.index.Found(d, info.Size(), lastUse)
}

func (l learner) noContent(d digest.Digest) { l.missing(l.layout.data(d), l.layout.blobs()) }

// missing deletes the folders around a file that is not there, up to root.
func (l learner) missing(path, root string) {
	if !l.deletes() {
		return
	}
	if err := removeStockLeftovers(path); err != nil {
		l.warn(err)
	}
	// Somebody may just be filling them; then they are not empty, or are made again.
	prune(filepath.Dir(path), root)
}

// link tells the index, unless the folder of the link is empty: a process was killed before it made the link.
func (l learner) link(d digest.Digest, link evict.Link) {
	path := l.layout.pathOf(link, d)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		l.missing(path, l.layout.repositories())
		return
	}
	l.index.Link(d, link)
}

func (l learner) tag(d digest.Digest, link evict.Link) { l.index.Link(d, link) }

func (l learner) brokenTag(link evict.Link, _ error) {
	if !l.deletes() {
		return
	}
	if err := l.removeBrokenTag(link.Repository, link.Tag); err != nil {
		l.warn(err)
	}
}

func (l learner) repository(name string) {
	if !l.deletes() {
		return
	}
	if err := os.RemoveAll(l.layout.uploads(name)); err != nil {
		l.warn(err)
	}
	prune(l.layout.repository(name), l.layout.repositories())
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
