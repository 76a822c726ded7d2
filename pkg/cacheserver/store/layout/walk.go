// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/oci"
)

// Visitor receives the results of a Walk, one call after the other: first all content, then the repositories.
type Visitor interface {
	// Content: the file of the content exists, complete or not.
	Content(d digest.Digest, info fs.FileInfo)
	// MissingContent: the directory of the content exists without its file.
	MissingContent(d digest.Digest)
	// Link: the directory of the link exists. The error is that of Reader.CheckLink.
	Link(d digest.Digest, l evict.Link, err error)
	// Tag: the tag points to d.
	Tag(d digest.Digest, l evict.Link)
	// CorruptTag: the tag contains no digest; the error wraps ErrNotFound.
	CorruptTag(l evict.Link, err error)
	// Repository: all links and tags of the directory were visited. It may be a directory that only contains repositories.
	Repository(name string)
	// Unreadable: a part of the volume cannot be read and is left out.
	Unreadable(err error)
}

// Walk visits all content, links and tags of a volume, which may change concurrently. It returns an error if a top-level
// directory cannot be read, or if ctx has ended.
func (r Reader) Walk(ctx context.Context, v Visitor) error {
	w := walker{r, v}
	// Content first: content that is stored later is already in the index, because the store adds it.
	prefixes, err := r.ReadDir(r.Blobs())
	if err != nil {
		return fmt.Errorf("reading blobs: %w", err)
	}
	for _, prefix := range prefixes {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		w.blobs(filepath.Join(r.Blobs(), prefix.Name()))
	}
	if _, err := r.ReadDir(r.Repositories()); err != nil {
		return fmt.Errorf("reading repositories: %w", err)
	}
	w.repositories(ctx, "")
	return context.Cause(ctx)
}

type walker struct {
	Reader
	visitor Visitor
}

// blobs visits the content in one directory.
func (w walker) blobs(dir string) {
	for d := range w.digests(dir) {
		info, err := w.FS.Stat(w.Data(d))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			w.visitor.MissingContent(d)
		case err != nil:
			w.visitor.Unreadable(err)
		default:
			w.visitor.Content(d, info)
		}
	}
}

// repositories visits a repository, "" for none, and all repositories below it. The grammar of names bounds the depth.
func (w walker) repositories(ctx context.Context, name string) {
	if ctx.Err() != nil {
		return
	}
	entries, err := w.ReadDir(w.Repository(name))
	if err != nil {
		w.visitor.Unreadable(err)
		return
	}
	for _, entry := range entries {
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
	w.visitor.Repository(name)
}

func (w walker) links(l evict.Link, folder string) {
	for d := range w.digests(w.Repository(l.Repository, folder, "sha256")) {
		w.visitor.Link(d, l, w.CheckLink(l, d))
	}
}

func (w walker) tags(repository string) {
	entries, err := w.ReadDir(w.Repository(repository, "_manifests/tags"))
	if err != nil {
		w.visitor.Unreadable(err)
		return
	}
	for _, entry := range entries {
		tag := entry.Name()
		if ref, err := oci.ParseReference(tag); err != nil || ref.Tag != tag {
			continue
		}
		l := evict.Link{Kind: evict.Tag, Repository: repository, Tag: tag}
		w.links(l, filepath.Join("_manifests/tags", tag, "index"))
		d, err := w.ReadTag(repository, tag)
		switch {
		case err == nil:
			w.visitor.Tag(d, l)
		case errors.Is(err, ErrNotFound):
			w.visitor.CorruptTag(l, err)
		default:
			w.visitor.Unreadable(err)
		}
	}
}

// digests returns the SHA-256 digests that the subdirectories of dir are named after.
func (w walker) digests(dir string) func(yield func(digest.Digest) bool) {
	return func(yield func(digest.Digest) bool) {
		entries, err := w.ReadDir(dir)
		if err != nil {
			w.visitor.Unreadable(err)
		}
		for _, entry := range entries {
			d, err := oci.ParseDigest("sha256:" + entry.Name())
			if err == nil && entry.IsDir() && !yield(d) {
				return
			}
		}
	}
}
