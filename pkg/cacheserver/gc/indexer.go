// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"context"
	"io/fs"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/store/layout"
)

// indexer adds the content, links and tags of a volume to an index. It changes nothing on the volume; its findings decide
// about everything that cannot be served. It implements layout.Visitor.
type indexer struct {
	index   *evict.Index
	records map[digest.Digest]record
	now     time.Time
	findings
}

// findings receives the results of an indexer. The cache server deletes unusable files, and a Scan reports them.
type findings interface {
	// content returns false if the content must not be added to the index.
	content(d digest.Digest, info fs.FileInfo, lastUse time.Time) bool
	// missingContent: the directory of the content is empty.
	missingContent(d digest.Digest)
	// link returns false if the link must not be added to the index. The error is nil for a valid link; it wraps
	// fs.ErrNotExist if the directory of the link is empty.
	link(d digest.Digest, l evict.Link, err error) bool
	// tag returns false if the tag must not be added to the index.
	tag(d digest.Digest, l evict.Link) bool
	// corruptTag: the tag contains no digest.
	corruptTag(l evict.Link, err error)
	// repository: all links and tags of the repository were reported.
	repository(name string)
	// unreadable: a part of the volume cannot be read.
	unreadable(err error)
}

// build adds the objects of a volume to the index.
func (x *indexer) build(ctx context.Context, r layout.Reader) error { return r.Walk(ctx, x) }

// Content implements layout.Visitor.
func (x *indexer) Content(d digest.Digest, info fs.FileInfo) {
	lastUse := x.lastUse(d, info)
	if !x.content(d, info, lastUse) {
		return
	}
	size := info.Size()
	if r, recorded := x.records[d]; recorded && r.size >= 0 {
		size = r.size // the store drops a file with another size when it opens it
	}
	x.index.AddContent(d, size, lastUse)
}

// MissingContent implements layout.Visitor.
func (x *indexer) MissingContent(d digest.Digest) { x.missingContent(d) }

// Link implements layout.Visitor.
func (x *indexer) Link(d digest.Digest, l evict.Link, err error) {
	if x.link(d, l, err) {
		x.index.Link(d, l)
	}
}

// Tag implements layout.Visitor.
func (x *indexer) Tag(d digest.Digest, l evict.Link) {
	if x.tag(d, l) {
		x.index.Link(d, l)
	}
}

// CorruptTag implements layout.Visitor.
func (x *indexer) CorruptTag(l evict.Link, err error) { x.corruptTag(l, err) }

// Repository implements layout.Visitor.
func (x *indexer) Repository(name string) { x.repository(name) }

// Unreadable implements layout.Visitor.
func (x *indexer) Unreadable(err error) { x.unreadable(err) }

// lastUse returns the recorded last use. Without a record it is the time of the last read or write of the file, as far as
// the file system records that.
func (x *indexer) lastUse(d digest.Digest, info fs.FileInfo) time.Time {
	last := info.ModTime()
	if r, recorded := x.records[d]; recorded {
		last = r.lastUse
	} else if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		if read := time.Unix(stat.Atim.Unix()); read.After(last) {
			last = read
		}
	}
	if last.After(x.now) {
		return x.now // written when the clock was wrong
	}
	return last
}
