// SPDX-License-Identifier: Apache-2.0

package store

import (
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

// layout is a root folder and knows the paths below it. All but partials and uses are those of distribution's
// registry/storage/paths.go.
type layout string

func (l layout) blobs() string { return filepath.Join(string(l), "docker/registry/v2/blobs/sha256") }

func (l layout) repositories() string {
	return filepath.Join(string(l), "docker/registry/v2/repositories")
}

func (l layout) data(d digest.Digest) string {
	return filepath.Join(string(l), "docker/registry/v2/blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded(), "data")
}

func (l layout) repository(repository string, elements ...string) string {
	return filepath.Join(append([]string{string(l), "docker/registry/v2/repositories", repository}, elements...)...)
}

func (l layout) layerLink(repository string, d digest.Digest) string {
	return l.repository(repository, "_layers", d.Algorithm().String(), d.Encoded(), "link")
}

func (l layout) revisionLink(repository string, d digest.Digest) string {
	return l.repository(repository, "_manifests/revisions", d.Algorithm().String(), d.Encoded(), "link")
}

// link returns the path of a link of the kind Layer or Revision.
func (l layout) link(k evict.Link, d digest.Digest) string {
	if k.Kind == evict.Revision {
		return l.revisionLink(k.Repository, d)
	}
	return l.layerLink(k.Repository, d)
}

// pathOf returns the path of a link of any kind; of a tag, that of the record that it has named the digest.
func (l layout) pathOf(k evict.Link, d digest.Digest) string {
	if k.Kind == evict.Tag {
		return l.tagIndexLink(k.Repository, k.Tag, d)
	}
	return l.link(k, d)
}

func (l layout) tag(repository, tag string) string {
	return l.repository(repository, "_manifests/tags", tag)
}

func (l layout) tagLink(repository, tag string) string {
	return filepath.Join(l.tag(repository, tag), "current/link")
}

func (l layout) tagIndexLink(repository, tag string, d digest.Digest) string {
	return filepath.Join(l.tag(repository, tag), "index", d.Algorithm().String(), d.Encoded(), "link")
}

// uploads is the folder of what a stock registry has not finished.
func (l layout) uploads(repository string) string { return l.repository(repository, "_uploads") }

// partials is the folder of unfinished files, on the volume so that they can be renamed.
func (l layout) partials() string { return filepath.Join(string(l), "registry-cache/partial") }

// uses is the file with the last use of each object.
func (l layout) uses() string { return filepath.Join(string(l), "registry-cache/last-use") }

// stockState is the file with what a stock registry deletes, and when.
func (l layout) stockState() string { return filepath.Join(string(l), "scheduler-state.json") }
