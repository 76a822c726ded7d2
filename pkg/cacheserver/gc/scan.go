// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/store/layout"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/oci"
)

const (
	// changeTime is longer than all steps of one change by a server, on any volume.
	changeTime = time.Minute
	// maxScanTime is longer than a scan. A file with a time that is further in the future was written by a wrong clock.
	maxScanTime = time.Hour
)

// Content is a read-only view of a volume. If a server changes the volume during the scan, the view is not that of one
// moment: changes during the scan are included or not, but never reported as corrupt.
type Content struct {
	// Index contains all content and links, as a server would index them. It is complete and has no pins.
	Index *evict.Index
	// Usage contains FileSystem and Inodes. It is zero if the file system cannot be measured; the reason is in Corrupt.
	Usage evict.Usage
	// Tags are the tags with a digest. The content of the digest may be missing.
	Tags []Tag
	// Unfinished are downloads in progress, and partial downloads of earlier processes.
	Unfinished []Unfinished
	// Corrupt are the files that cannot be read or have invalid content.
	Corrupt []Corrupt
	// Recorded is the time at which a server recorded last uses, zero if no server did. For content without a record, the
	// last use is the time of the last read or write of its file, as far as the file system records that.
	Recorded time.Time

	reader layout.Reader
}

// Tag is a tag of a repository.
type Tag struct {
	Repository, Name string
	Digest           digest.Digest
}

// Unfinished is a partial download: a file, or a directory of a stock registry. It can also be content without a link that
// was stored immediately before the scan.
type Unfinished struct {
	// Path is relative to the root.
	Path string
	// Repository is empty for downloads of the cache server.
	Repository string
	// Digest is the digest of the complete content, empty if it is unknown.
	Digest digest.Digest
	// Size is the current size in bytes.
	Size int64
	// Written is the time of the last write.
	Written time.Time
}

// Corrupt is a file that cannot be used.
type Corrupt struct {
	// Path is relative to the root; "." is the volume itself.
	Path string
	// Digest is the digest of the content, or of the content that the link refers to. It is empty for other files.
	Digest digest.Digest
	// Link is nil unless the file is a link.
	Link *evict.Link
	// Err is the reason.
	Err error
}

// Scan reads the volume of root, to which files belongs, at the time now. It changes nothing: the volume may be mounted
// read-only, may be in use by a server, and may be the volume of a stock registry. The returned Content contains an index
// with the policy; it uses files. Missing and corrupt files are part of the result. An error means that the directory does
// not exist, that it cannot be read at all, that the volume does not respond (volume.ErrHung), or that ctx has ended.
func Scan(ctx context.Context, files *volume.FS, root string, policy evict.Policy, now time.Time) (*Content, error) {
	info, err := files.Stat(root)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("scanning the volume: directory %s does not exist", root)
	case err != nil:
		return nil, fmt.Errorf("scanning the volume: %w", err)
	case !info.IsDir():
		return nil, fmt.Errorf("scanning the volume: %s is not a directory", root)
	}
	s := newScanner(files, root, policy, now)
	s.measure()
	if registry := filepath.Join(root, "docker/registry/v2"); !s.exists(registry) {
		s.addCorrupt(registry, Corrupt{Err: errors.New("no registry has stored content on this volume")})
	}
	// Before the content: a download that ends during the scan is then found twice instead of never.
	s.partials()
	indexer := &indexer{index: s.Index, records: s.records(), now: now, findings: s}
	s.lastUse = indexer.lastUse
	if err := indexer.build(ctx, s.reader); err != nil {
		return nil, fmt.Errorf("scanning the volume: %w", err)
	}
	s.finish()
	if s.hung != nil {
		return nil, fmt.Errorf("scanning the volume: %w", s.hung)
	}
	return s.Content, nil
}

// Manifest returns the content of a manifest, independently of its repositories. Errors wrap store.ErrNotFound if it was
// deleted or is corrupt.
func (c *Content) Manifest(d digest.Digest) ([]byte, error) {
	content, err := c.reader.ReadManifest(d)
	if err != nil {
		return nil, fmt.Errorf("reading manifest %s: %w", d, err)
	}
	return content, nil
}

// Path returns the path of content, relative to the root.
func (c *Content) Path(d digest.Digest) string { return c.reader.Relative(c.reader.Data(d)) }

// LinkPath returns the path of a link, relative to the root.
func (c *Content) LinkPath(d digest.Digest, l evict.Link) string {
	return c.reader.Relative(c.reader.Link(l, d))
}

// scanner collects the findings of an indexer. A server may change the volume concurrently: it writes content before
// links, and deletes links before content. A scanner therefore checks everything that does not match again.
type scanner struct {
	*Content
	files   *volume.FS
	hung    error // wraps volume.ErrHung
	now     time.Time
	lastUse func(d digest.Digest, info fs.FileInfo) time.Time
	found   map[digest.Digest]foundContent
	linked  map[digest.Digest]bool
	// revisions are the links to manifests that were found.
	revisions map[revision]bool
}

type foundContent struct {
	size             int64
	lastUse, changed time.Time
}

// revision is a manifest of a repository.
type revision struct {
	repository string
	digest     digest.Digest
}

func newScanner(files *volume.FS, root string, policy evict.Policy, now time.Time) *scanner {
	return &scanner{
		Content:   &Content{Index: evict.NewIndex(policy), reader: layout.Reader{Root: layout.Root(root), FS: files}},
		files:     files,
		now:       now,
		found:     map[digest.Digest]foundContent{},
		linked:    map[digest.Digest]bool{},
		revisions: map[revision]bool{},
	}
}

func (s *scanner) measure() {
	stat, err := s.files.Statfs(string(s.reader.Root))
	if err != nil {
		s.addCorrupt(string(s.reader.Root), Corrupt{Err: fmt.Errorf("measuring the file system: %w", err)})
		return
	}
	space := spaceOf(stat)
	s.Usage = evict.Usage{FileSystem: space.Bytes, Inodes: space.Inodes}
}

func (s *scanner) records() map[digest.Digest]record {
	path := s.reader.LastUses()
	records, invalid, err := readRecords(s.reader)
	if err == nil && invalid > 0 {
		err = fmt.Errorf("%d invalid lines", invalid)
	}
	if err != nil {
		s.addCorrupt(path, Corrupt{Err: err})
	}
	if info, err := s.stat(path); err == nil {
		s.Recorded = info.ModTime()
	}
	return records
}

// partials adds the partial downloads of the cache server.
func (s *scanner) partials() {
	entries, err := s.reader.ReadDir(s.reader.Partials())
	if err != nil {
		s.unreadable(err)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if errors.Is(err, volume.ErrHung) {
			s.hung = err
		}
		if err != nil {
			continue // the download has ended
		}
		path := filepath.Join(s.reader.Partials(), entry.Name())
		u := Unfinished{Path: s.reader.Relative(path), Size: info.Size(), Written: info.ModTime()}
		hex, _, _ := strings.Cut(entry.Name(), "-")
		if d, err := oci.ParseDigest("sha256:" + hex); err == nil {
			u.Digest = d
		}
		s.Unfinished = append(s.Unfinished, u)
	}
}

// content implements findings. finish adds the content to the index.
func (s *scanner) content(d digest.Digest, info fs.FileInfo, lastUse time.Time) bool {
	s.found[d] = foundContent{info.Size(), lastUse, changed(info)}
	switch {
	case !info.Mode().IsRegular():
		s.addCorrupt(s.reader.Data(d), Corrupt{Digest: d, Err: errors.New("not a regular file")})
	case info.Size() == 0 && d != store.EmptyDigest:
		s.addCorrupt(s.reader.Data(d), Corrupt{Digest: d, Err: errors.New("the file is empty")})
	}
	return false
}

// missingContent implements findings: a server may be about to write the content.
func (s *scanner) missingContent(digest.Digest) {}

// link implements findings.
func (s *scanner) link(d digest.Digest, l evict.Link, err error) bool {
	path := s.reader.Link(l, d)
	missing := errors.Is(err, fs.ErrNotExist)
	if missing && s.isChanging(filepath.Dir(path)) {
		return false
	}
	if !s.hasContent(d) && !missing && !s.exists(path) {
		return false // deleted with its content
	}
	switch {
	case missing:
		s.addCorrupt(path, Corrupt{Digest: d, Link: &l, Err: errors.New("the directory contains no link")})
	case errors.Is(err, layout.ErrNotFound):
		s.addCorrupt(path, Corrupt{Digest: d, Link: &l, Err: errors.New("the link does not contain its digest")})
	case err != nil:
		s.addCorrupt(path, Corrupt{Digest: d, Link: &l, Err: err})
	}
	s.addLink(d, l)
	return true
}

// tag implements findings.
func (s *scanner) tag(d digest.Digest, l evict.Link) bool {
	if !s.hasContent(d) && !s.exists(s.reader.TagLink(l.Repository, l.Tag)) {
		return false // deleted with its content
	}
	s.Tags = append(s.Tags, Tag{Repository: l.Repository, Name: l.Tag, Digest: d})
	s.addLink(d, l)
	return true
}

func (s *scanner) addLink(d digest.Digest, l evict.Link) {
	key := revision{l.Repository, d}
	switch l.Kind {
	case evict.Revision:
		s.revisions[key] = true
		s.linked[d] = true
	case evict.Layer:
		s.linked[d] = true
	case evict.Tag:
		// Tags are read after revisions. The manifest may have been stored between the two.
		l := evict.Link{Kind: evict.Revision, Repository: l.Repository}
		if !s.revisions[key] && s.exists(s.reader.Link(l, d)) && s.link(d, l, s.reader.CheckLink(l, d)) {
			s.Index.Link(d, l)
		}
	}
}

// corruptTag implements findings.
func (s *scanner) corruptTag(l evict.Link, err error) {
	dir := s.reader.Tag(l.Repository, l.Tag)
	current := filepath.Join(dir, "current")
	if errors.Is(err, fs.ErrNotExist) && (s.isChanging(dir) || s.exists(current) && s.isChanging(current)) {
		return
	}
	s.addCorrupt(s.reader.TagLink(l.Repository, l.Tag), Corrupt{Link: &l, Err: err})
}

// repository implements findings. It adds the partial downloads of a stock registry.
func (s *scanner) repository(name string) {
	entries, err := s.reader.ReadDir(s.reader.Uploads(name))
	if err != nil {
		s.unreadable(err)
	}
	for _, entry := range entries {
		path := filepath.Join(s.reader.Uploads(name), entry.Name())
		u := Unfinished{Path: s.reader.Relative(path), Repository: name}
		for _, part := range []string{"", "startedat", "data"} {
			if info, err := s.stat(filepath.Join(path, part)); err == nil {
				u.Written = info.ModTime()
				if part == "data" {
					u.Size = info.Size()
				}
			}
		}
		if !u.Written.IsZero() {
			s.Unfinished = append(s.Unfinished, u)
		}
	}
}

// unreadable implements findings.
func (s *scanner) unreadable(err error) {
	path := string(s.reader.Root)
	if pathError := (*fs.PathError)(nil); errors.As(err, &pathError) {
		path, err = pathError.Path, pathError.Err
	}
	s.addCorrupt(path, Corrupt{Err: err})
}

func (s *scanner) addCorrupt(path string, c Corrupt) {
	if errors.Is(c.Err, volume.ErrHung) {
		s.hung = c.Err
	}
	c.Path = s.reader.Relative(path)
	s.Corrupt = append(s.Corrupt, c)
}

// hasContent reports whether the content exists, also if it was stored after the scan of the content.
func (s *scanner) hasContent(d digest.Digest) bool {
	if _, known := s.found[d]; known {
		return true
	}
	info, err := s.stat(s.reader.Data(d))
	if err != nil {
		return false
	}
	s.content(d, info, s.lastUse(d, info))
	return true
}

// isChanging reports whether the directory was deleted, or has changed so recently that a server may be about to write or
// delete further files in it.
func (s *scanner) isChanging(dir string) bool {
	info, err := s.stat(dir)
	return errors.Is(err, fs.ErrNotExist) || err == nil && s.isRecent(changed(info))
}

func (s *scanner) isRecent(t time.Time) bool {
	age := s.now.Sub(t)
	return age < changeTime && age > -maxScanTime
}

// changed returns the time at which the file was last written or renamed.
func changed(info fs.FileInfo) time.Time {
	last := info.ModTime()
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		if renamed := time.Unix(stat.Ctim.Unix()); renamed.After(last) {
			return renamed
		}
	}
	return last
}

// stat returns the information about a file. A volume that does not respond ends the scan with an error.
func (s *scanner) stat(path string) (fs.FileInfo, error) {
	info, err := s.files.Stat(path)
	if errors.Is(err, volume.ErrHung) {
		s.hung = err
	}
	return info, err
}

func (s *scanner) exists(path string) bool {
	_, err := s.stat(path)
	return err == nil
}

// finish adds the content to the index.
func (s *scanner) finish() {
	for d, f := range s.found {
		switch {
		case s.linked[d]:
			s.Index.AddContent(d, f.size, f.lastUse)
		case !s.exists(s.reader.Data(d)):
			// Deleted after its links.
		case s.isRecent(f.changed):
			// A server may be about to write its link.
			s.Unfinished = append(s.Unfinished, Unfinished{Path: s.Path(d), Digest: d, Size: f.size, Written: f.changed})
		default:
			s.Index.AddContent(d, f.size, f.lastUse)
		}
	}
	s.Index.Complete()
	s.Unfinished = slices.DeleteFunc(s.Unfinished, func(u Unfinished) bool {
		return !s.exists(filepath.Join(string(s.reader.Root), u.Path))
	})
}
