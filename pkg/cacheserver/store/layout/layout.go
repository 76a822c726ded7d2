// SPDX-License-Identifier: Apache-2.0

// Package layout defines the files of a cache on its volume, and reads them. Content, links and tags are those of version
// 2 of the file system driver of the distribution project (registry/storage/paths.go), so the cache server and the stock
// registry can each continue with the volume of the other. The directory registry-cache belongs to the cache server.
package layout

import (
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

// Root is the directory of a volume. Its methods return absolute paths. Repositories and tags must be valid by the grammar
// of package oci.
type Root string

// Blobs is the directory of all content.
func (r Root) Blobs() string { return r.path("docker/registry/v2/blobs/sha256") }

// Data is the file with the content of a digest.
func (r Root) Data(d digest.Digest) string {
	return r.path("docker/registry/v2/blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded(), "data")
}

// Repositories is the directory of all repositories.
func (r Root) Repositories() string { return r.path("docker/registry/v2/repositories") }

// Repository is a path in the directory of a repository.
func (r Root) Repository(repository string, elements ...string) string {
	return filepath.Join(r.Repositories(), repository, filepath.Join(elements...))
}

// Link is the file of a link to d. For a link of kind Tag it is the record that the tag points to d, or has pointed to it;
// the current digest of a tag is in TagLink.
func (r Root) Link(l evict.Link, d digest.Digest) string {
	var folder string
	switch l.Kind {
	case evict.Layer:
		folder = "_layers"
	case evict.Revision:
		folder = "_manifests/revisions"
	case evict.Tag:
		folder = filepath.Join("_manifests/tags", l.Tag, "index")
	}
	return r.Repository(l.Repository, folder, d.Algorithm().String(), d.Encoded(), "link")
}

// Tag is the directory of a tag.
func (r Root) Tag(repository, tag string) string {
	return r.Repository(repository, "_manifests/tags", tag)
}

// TagLink is the file with the current digest of a tag.
func (r Root) TagLink(repository, tag string) string {
	return filepath.Join(r.Tag(repository, tag), "current/link")
}

// Uploads is the directory of the partial downloads of a stock registry.
func (r Root) Uploads(repository string) string { return r.Repository(repository, "_uploads") }

// Partials is the directory of files that are being written. It is on the volume, so that they can be renamed.
func (r Root) Partials() string { return r.path("registry-cache/partial") }

// LastUses is the file with the last use of each object.
func (r Root) LastUses() string { return r.path("registry-cache/last-use") }

// DistributionState is the file in which a stock registry records its pending deletions with their times.
func (r Root) DistributionState() string { return r.path("scheduler-state.json") }

// Relative returns path relative to the root.
func (r Root) Relative(path string) string {
	if relative, err := filepath.Rel(string(r), path); err == nil {
		return relative
	}
	return path
}

func (r Root) path(elements ...string) string {
	return filepath.Join(string(r), filepath.Join(elements...))
}
