// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/oci"
)

const (
	// changeTime is more than the steps of one change take on any volume.
	changeTime = time.Minute
	// maxLookTime is more than looking at a volume takes. What is from later is from a clock that was wrong.
	maxLookTime = time.Hour
)

// Survey is what was on a volume. While a server uses the volume it is not the state of one moment: what was stored or
// deleted meanwhile is in it or not, but nothing is said to be broken because of that.
type Survey struct {
	// Index has all content and links, by the rules of the server. It is complete, and nobody holds anything.
	Index *evict.Index
	// Volume is measured like the server's. The zero value says that it could not be; the reason is in Broken.
	Volume evict.Volume
	// Tags are the tags that name a digest, which may be stored or not.
	Tags []Tag
	// Unfinished are downloads that go on or were interrupted.
	Unfinished []Unfinished
	// Broken is what cannot be read, or does not say what it should.
	Broken []Broken
	// Recorded is when a server recorded last uses, zero if none did. What is missing in that record was last used when
	// its file was read or written as far as the volume tells.
	Recorded time.Time

	layout layout
}

// Tag is a name of a manifest.
type Tag struct {
	Repository, Name string
	Digest           digest.Digest
}

// Unfinished is a file, or a folder of a stock registry, that a download has written. What has been written to its end may
// be content already, which no repository has yet.
type Unfinished struct {
	// Path is relative to the root.
	Path string
	// Repository is "" for downloads of this server.
	Repository string
	// Digest is what it will have, "" where the volume does not tell.
	Digest digest.Digest
	// Size is in bytes.
	Size int64
	// Written is when something was last added.
	Written time.Time
}

// Broken is a file that cannot be used.
type Broken struct {
	// Path is relative to the root; "." is the volume.
	Path string
	// Digest is the content that it is or links to, "" where it is neither.
	Digest digest.Digest
	// Link is set for links, nil for everything else.
	Link *evict.Link
	// Err says what is wrong.
	Err error
}

// Look surveys the volume of root as of now. It changes nothing on the volume, which may be mounted read-only, may be
// used by a server meanwhile, and may have been filled by a stock registry. What is missing or broken is part of the
// survey; an error says that there is no such folder, that it cannot be read at all, or that ctx has ended.
func Look(ctx context.Context, root string, now time.Time) (*Survey, error) {
	info, err := os.Stat(root)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("surveying the volume: there is no folder %s", root)
	case err != nil:
		return nil, fmt.Errorf("surveying the volume: %w", err)
	case !info.IsDir():
		return nil, fmt.Errorf("surveying the volume: %s is not a folder", root)
	}
	v := newSurveyor(root, now)
	if v.Volume, err = statVolume(root); err != nil {
		v.broken(root, Broken{Err: err})
	}
	if registry := filepath.Join(root, "docker/registry/v2"); !v.isThere(registry) {
		v.broken(registry, Broken{Err: errors.New("no registry has stored anything here")})
	}
	// Before the content, so that what is finished meanwhile is seen twice rather than never.
	v.partials()
	if err := v.walk(ctx); err != nil {
		return nil, fmt.Errorf("surveying the volume: %w", err)
	}
	v.fill()
	return v.Survey, nil
}

// Manifest returns the content of a manifest, whoever has it. Errors wrap ErrNotFound where it is gone or broken.
func (s *Survey) Manifest(d digest.Digest) ([]byte, error) {
	content, err := readQuietly(s.layout.data(d))
	if err != nil {
		return nil, fmt.Errorf("reading manifest %s: %w", d, err)
	}
	if digest.SHA256.FromBytes(content) != d {
		return nil, fmt.Errorf("reading manifest %s: %w: the content has another digest", d, ErrNotFound)
	}
	return content, nil
}

// Path returns where content with the digest is, relative to the root.
func (s *Survey) Path(d digest.Digest) string { return s.relative(s.layout.data(d)) }

// LinkPath returns where a link to the digest is, relative to the root.
func (s *Survey) LinkPath(d digest.Digest, l evict.Link) string {
	return s.relative(s.layout.pathOf(l, d))
}

// relative cuts the root off.
func (s *Survey) relative(path string) string {
	if relative, err := filepath.Rel(string(s.layout), path); err == nil {
		return relative
	}
	return path
}

// readQuietly reads a file of at most oci.MaxManifestSize bytes. The time of its last reading, which counts as a use
// where no server has recorded one, stays as it was, if this is its owner or the superuser.
func readQuietly(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOATIME, 0)
	if errors.Is(err, syscall.EPERM) {
		f, err = os.Open(path)
	}
	if err != nil {
		return nil, notFound(err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, oci.MaxManifestSize+1))
	if err != nil {
		return nil, err
	}
	if len(content) > oci.MaxManifestSize {
		return nil, fmt.Errorf("%w: it has more than %d bytes", ErrNotFound, oci.MaxManifestSize)
	}
	return content, nil
}

// surveyor is the visitor that only takes notes.
type surveyor struct {
	*Survey
	now    time.Time
	walker *walker
	found  map[digest.Digest]found
	linked map[digest.Digest]bool
	// revisions are the links to manifests that have been seen.
	revisions map[revision]bool
}

// revision is a manifest of a repository.
type revision struct {
	repository string
	digest     digest.Digest
}

func newSurveyor(root string, now time.Time) *surveyor {
	v := &surveyor{
		Survey:    &Survey{Index: evict.NewIndex(), layout: layout(root)},
		now:       now,
		found:     map[digest.Digest]found{},
		linked:    map[digest.Digest]bool{},
		revisions: map[revision]bool{},
	}
	v.walker = &walker{visitor: v, layout: v.layout, now: now}
	return v
}

type found struct {
	size             int64
	lastUse, changed time.Time
}

func (v *surveyor) walk(ctx context.Context) error {
	var broken int
	var err error
	path := v.layout.uses()
	v.walker.uses, broken, err = readUses(path)
	if err == nil && broken > 0 {
		err = fmt.Errorf("%d broken lines", broken)
	}
	if err != nil {
		v.broken(path, Broken{Err: err})
	}
	if info, err := os.Stat(path); err == nil {
		v.Recorded = info.ModTime()
	}
	return v.walker.walk(ctx)
}

// partials notes what this server has not finished.
func (v *surveyor) partials() {
	entries, err := readDir(v.layout.partials())
	if err != nil {
		v.warn(err)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			continue // finished
		}
		path := filepath.Join(v.layout.partials(), entry.Name())
		u := Unfinished{Path: v.relative(path), Size: info.Size(), Written: info.ModTime()}
		hex, _, _ := strings.Cut(entry.Name(), "-")
		if d, err := oci.ParseDigest("sha256:" + hex); err == nil {
			u.Digest = d
		}
		v.Unfinished = append(v.Unfinished, u)
	}
}

func (v *surveyor) content(d digest.Digest, info fs.FileInfo, lastUse time.Time) {
	v.found[d] = found{info.Size(), lastUse, changed(info)}
	switch {
	case !info.Mode().IsRegular():
		v.broken(v.layout.data(d), Broken{Digest: d, Err: errors.New("it is not a file")})
	case info.Size() == 0 && d != emptyDigest:
		v.broken(v.layout.data(d), Broken{Digest: d, Err: errors.New("the file is empty")})
	}
}

// noContent is a folder that somebody may just be filling.
func (v *surveyor) noContent(digest.Digest) {}

func (v *surveyor) link(d digest.Digest, l evict.Link) {
	path := v.layout.pathOf(l, d)
	content, err := readSmall(path)
	if err == nil && content != d.String() {
		err = errors.New("the link names something else")
	}
	gone := errors.Is(err, fs.ErrNotExist)
	if gone && v.isChanging(filepath.Dir(path)) {
		return
	}
	if _, known := v.found[d]; !known && !v.isContent(d) && !gone && !v.isThere(path) {
		return // links go before content
	}
	if err != nil {
		if gone {
			err = errors.New("the folder has no link in it")
		}
		v.broken(path, Broken{Digest: d, Link: &l, Err: err})
	}
	v.note(d, l)
}

func (v *surveyor) tag(d digest.Digest, l evict.Link) {
	if !v.isContent(d) && !v.isThere(v.layout.tagLink(l.Repository, l.Tag)) {
		return // tags go before content
	}
	v.Tags = append(v.Tags, Tag{Repository: l.Repository, Name: l.Tag, Digest: d})
	v.note(d, l)
}

func (v *surveyor) note(d digest.Digest, l evict.Link) {
	v.Index.Link(d, l)
	of := revision{l.Repository, d}
	switch l.Kind {
	case evict.Revision:
		v.revisions[of] = true
		fallthrough
	case evict.Layer:
		v.linked[d] = true
	case evict.Tag:
		// The tags come after the revisions, and so may one whose manifest was stored in between.
		if l := (evict.Link{Kind: evict.Revision, Repository: l.Repository}); !v.revisions[of] && v.isThere(v.layout.pathOf(l, d)) {
			v.link(d, l)
		}
	}
}

func (v *surveyor) brokenTag(l evict.Link, err error) {
	dir := v.layout.tag(l.Repository, l.Tag)
	if errors.Is(err, fs.ErrNotExist) && (v.isChanging(dir) || v.isThere(filepath.Join(dir, "current")) && v.isChanging(filepath.Join(dir, "current"))) {
		return
	}
	v.broken(v.layout.tagLink(l.Repository, l.Tag), Broken{Link: &l, Err: err})
}

// repository notes what a stock registry has not finished.
func (v *surveyor) repository(name string) {
	entries, err := readDir(v.layout.uploads(name))
	if err != nil {
		v.warn(err)
	}
	for _, entry := range entries {
		path := filepath.Join(v.layout.uploads(name), entry.Name())
		u := Unfinished{Path: v.relative(path), Repository: name}
		for _, part := range []string{"", "startedat", "data"} {
			if info, err := os.Stat(filepath.Join(path, part)); err == nil {
				u.Written = info.ModTime()
				if part == "data" {
					u.Size = info.Size()
				}
			}
		}
		if !u.Written.IsZero() {
			v.Unfinished = append(v.Unfinished, u)
		}
	}
}

func (v *surveyor) warn(err error) {
	path := string(v.layout)
	if pathError := (*fs.PathError)(nil); errors.As(err, &pathError) {
		path, err = pathError.Path, pathError.Err
	}
	v.broken(path, Broken{Err: err})
}

func (v *surveyor) broken(path string, b Broken) {
	b.Path = v.relative(path)
	v.Survey.Broken = append(v.Survey.Broken, b)
}

// isChanging says that the folder has gone, or that something in it was made or deleted so recently that a server may be
// about to make or delete the rest.
func (v *surveyor) isChanging(dir string) bool {
	info, err := os.Stat(dir)
	return errors.Is(err, fs.ErrNotExist) || err == nil && v.isRecent(changed(info))
}

func (v *surveyor) isRecent(t time.Time) bool {
	age := v.now.Sub(t)
	return age < changeTime && age > -maxLookTime
}

// changed returns when the file was last written or renamed.
func changed(info fs.FileInfo) time.Time {
	last := info.ModTime()
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		if renamed := time.Unix(stat.Ctim.Unix()); renamed.After(last) {
			return renamed
		}
	}
	return last
}

func (v *surveyor) isThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// isContent tells whether there is content, also where it came after the walk through the content.
func (v *surveyor) isContent(d digest.Digest) bool {
	if _, known := v.found[d]; known {
		return true
	}
	info, err := os.Stat(v.layout.data(d))
	if err != nil {
		return false
	}
	v.content(d, info, v.walker.lastUse(d, info))
	return true
}

// fill completes the index.
func (v *surveyor) fill() {
	for d, f := range v.found {
		switch {
		case v.linked[d]:
			v.Index.Found(d, f.size, f.lastUse)
		case !v.isThere(v.layout.data(d)):
			// Links go before content.
		case v.isRecent(f.changed):
			// Content comes before links.
			v.Unfinished = append(v.Unfinished, Unfinished{Path: v.Path(d), Digest: d, Size: f.size, Written: f.changed})
		default:
			v.Index.Found(d, f.size, f.lastUse)
		}
	}
	v.Index.Complete()
	v.Unfinished = slices.DeleteFunc(v.Unfinished, func(u Unfinished) bool { return !v.isThere(filepath.Join(string(v.layout), u.Path)) })
}
