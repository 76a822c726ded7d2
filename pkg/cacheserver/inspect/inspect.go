// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/gc"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/oci"
)

// Inspect reports the content of the volume of root at the time now, and the evictions under the limits. It changes
// nothing on the volume. Missing and corrupt files are part of the report. Errors are those of gc.Scan; the volume can also stop
// responding later.
func Inspect(ctx context.Context, root string, l evict.Limits, now time.Time) (*Report, error) {
	files := volume.New(root, volume.Options{})
	defer files.Close()
	content, err := gc.Scan(ctx, files, root, evict.NewLRU(l.TTL), now)
	if err != nil {
		return nil, err
	}
	report, err := describe(root, content, l, now)
	if err != nil {
		return nil, fmt.Errorf("reading the manifests of the volume: %w", err)
	}
	return report, nil
}

// describe returns an error if the volume does not respond.
func describe(root string, content *gc.Content, l evict.Limits, now time.Time) (*Report, error) {
	d := &describer{
		content:      content,
		objects:      map[digest.Digest]*evict.Candidate{},
		manifests:    map[digest.Digest]*manifest{},
		tags:         map[image][]string{},
		corrupt:      map[digest.Digest]bool{},
		corruptLinks: map[link]bool{},
		wrongSize:    map[digest.Digest]bool{},
		deleted:      map[digest.Digest]bool{},
		used:         map[digest.Digest]bool{},
		report: &Report{
			Root: root,
			Time: second(now),
			Policy: Policy{
				TTLSeconds: int64(l.TTL / time.Second), SizeBytes: l.Size,
				HighWatermarkPercent: l.HighWatermark, LowWatermarkPercent: l.LowWatermark,
			},
			Images:  []Image{},
			Orphans: []Orphan{},
		},
	}
	candidates := content.Index.Forecast(now, l, content.Usage)
	d.volume(content.Usage.FileSystem)
	d.objectsOf(candidates)
	for _, b := range content.Corrupt {
		d.addCorrupt(b)
	}
	d.images(candidates)
	d.orphans(candidates)
	return d.report, d.hung
}

// describer creates a report.
type describer struct {
	report    *Report
	content   *gc.Content
	objects   map[digest.Digest]*evict.Candidate
	manifests map[digest.Digest]*manifest
	tags      map[image][]string
	// corrupt content and corruptLinks are not served.
	corrupt      map[digest.Digest]bool
	corruptLinks map[link]bool
	// wrongSize is content with another size than in the manifest of an image. Another image may be able to use it, because
	// either the content or the manifest is wrong.
	wrongSize map[digest.Digest]bool
	// deleted is content that was deleted after the scan.
	deleted map[digest.Digest]bool
	// used is content that belongs to an image.
	used map[digest.Digest]bool
	// hung is the error of a volume that does not respond.
	hung error
}

type image struct {
	repository string
	digest     digest.Digest
}

type link struct {
	evict.Link
	digest digest.Digest
}

// manifest is a manifest that can be served.
type manifest struct {
	mediaType  string
	references []oci.Descriptor
}

func (d *describer) volume(a evict.Amount) {
	if a.Limit <= 0 {
		return
	}
	d.report.Volume = &Volume{
		UsedBytes:   a.Used,
		LimitBytes:  a.Limit,
		FreeBytes:   a.Limit - a.Used,
		UsedPercent: float64(a.Used) * 100 / float64(a.Limit),
	}
}

func (d *describer) objectsOf(candidates []evict.Candidate) {
	t := &d.report.Totals
	t.LastUsesRecorded = second(d.content.Recorded)
	for i := range candidates {
		p := &candidates[i]
		d.objects[p.Digest] = p
		if !p.Stored {
			continue
		}
		t.Objects++
		t.SizeBytes += p.Size
		if p.Now {
			t.EvictableObjects++
			t.EvictableSizeBytes += p.Size
		}
		if used := second(p.LastUse); t.OldestUse.IsZero() || used.Before(t.OldestUse) {
			t.OldestUse = used
		}
	}
}

func (d *describer) addCorrupt(b gc.Corrupt) {
	o := Orphan{Kind: Corrupt, Path: b.Path, Digest: b.Digest, Note: b.Err.Error()}
	switch p := d.objects[b.Digest]; {
	case b.Link != nil:
		d.corruptLinks[link{*b.Link, b.Digest}] = true
		o.Links = linksOf([]evict.Link{*b.Link})
		if p != nil {
			o.Eviction = eviction(p)
		}
	case p != nil:
		d.corrupt[b.Digest] = true
		o.describe(p)
	}
	d.report.Orphans = append(d.report.Orphans, o)
}

func (d *describer) addWrongSize(p *evict.Candidate, note string) {
	if d.wrongSize[p.Digest] {
		return
	}
	d.wrongSize[p.Digest] = true
	o := Orphan{Kind: Corrupt, Path: d.content.Path(p.Digest), Digest: p.Digest, Note: note}
	o.describe(p)
	d.report.Orphans = append(d.report.Orphans, o)
}

func (o *Orphan) describe(p *evict.Candidate) {
	o.SizeBytes, o.LastUse, o.Eviction, o.Links = p.Size, second(p.LastUse), eviction(p), linksOf(p.Links)
}

// serves reports whether the repository can serve the content through a link of the kind.
func (d *describer) serves(repository string, dgst digest.Digest, kind evict.Kind) bool {
	p, l := d.objects[dgst], evict.Link{Kind: kind, Repository: repository}
	return p != nil && p.Stored && !d.corrupt[dgst] && slices.Contains(p.Links, l) && !d.corruptLinks[link{l, dgst}]
}

func (d *describer) images(candidates []evict.Candidate) {
	for _, t := range d.content.Tags {
		i := image{t.Repository, t.Digest}
		d.tags[i] = append(d.tags[i], t.Name)
	}
	var all []image
	inner := map[image]bool{}
	for _, p := range candidates {
		for _, l := range p.Links {
			if l.Kind != evict.Revision || !d.serves(l.Repository, p.Digest, evict.Revision) {
				continue
			}
			m := d.read(p.Digest)
			if m == nil {
				break
			}
			all = append(all, image{l.Repository, p.Digest})
			for _, r := range m.references {
				if r.Role == oci.RoleManifest {
					inner[image{l.Repository, r.Digest}] = true
				}
			}
		}
	}
	repositories := map[string]bool{}
	for _, i := range all {
		if inner[i] && len(d.tags[i]) == 0 {
			continue
		}
		described := d.image(i)
		d.report.Images = append(d.report.Images, described)
		d.report.Totals.Images++
		d.report.Totals.Tags += len(described.Tags)
		repositories[i.repository] = true
	}
	d.report.Totals.Repositories = len(repositories)
	slices.SortFunc(d.report.Images, func(a, b Image) int {
		return cmp.Or(
			strings.Compare(a.Repository, b.Repository),
			cmp.Compare(min(len(b.Tags), 1), min(len(a.Tags), 1)),
			slices.Compare(a.Tags, b.Tags),
			strings.Compare(string(a.Digest), string(b.Digest)),
		)
	})
}

// read returns a manifest, nil if it cannot be served.
func (d *describer) read(dgst digest.Digest) *manifest {
	if m, known := d.manifests[dgst]; known {
		return m
	}
	d.manifests[dgst] = nil
	content, err := d.content.Manifest(dgst)
	if errors.Is(err, fs.ErrNotExist) {
		d.deleted[dgst] = true
		return nil
	}
	m := &manifest{}
	if err == nil {
		m.mediaType, err = oci.ManifestMediaType(content)
	}
	if err == nil {
		m.references, err = references(content)
	}
	if errors.Is(err, volume.ErrHung) {
		d.hung = err
		return nil
	}
	if err != nil {
		d.addCorrupt(gc.Corrupt{Path: d.content.Path(dgst), Digest: dgst, Err: err})
		return nil
	}
	d.manifests[dgst] = m
	return m
}

// references returns all references of a manifest, of which there are at most oci.MaxReferences.
func references(content []byte) ([]oci.Descriptor, error) {
	var all []oci.Descriptor
	for r, err := range oci.References(content) {
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

func (d *describer) image(i image) Image {
	p := d.objects[i.digest]
	sum := d.sum(i.repository, i.digest)
	described := Image{
		Repository: i.repository,
		Tags:       append([]string{}, d.tags[i]...),
		Digest:     i.digest,
		MediaType:  d.manifests[i.digest].mediaType,
		SizeBytes:  sum.size,
		Objects:    sum.count,
		LastUse:    second(p.LastUse),
		Eviction:   eviction(p),
		Layers:     sum.layers,
	}
	slices.Sort(described.Tags)
	for _, r := range d.manifests[i.digest].references {
		if r.Role != oci.RoleManifest {
			continue
		}
		m := Manifest{Digest: r.Digest, Platform: r.Platform, Objects: Count{Referenced: 1}}
		if d.serves(i.repository, r.Digest, evict.Revision) && d.read(r.Digest) != nil {
			inner := d.sum(i.repository, r.Digest)
			m.SizeBytes, m.Objects = inner.size, inner.count
			m.LastUse, m.Eviction = second(d.objects[r.Digest].LastUse), eviction(d.objects[r.Digest])
		}
		described.Manifests = append(described.Manifests, m)
	}
	return described
}

// sum contains the totals of a manifest and all content that it refers to.
type sum struct {
	size   int64
	count  Count
	layers Layers
}

func (d *describer) sum(repository string, top digest.Digest) sum {
	s := sum{count: Count{Present: 1, Referenced: 1}, size: d.objects[top].Size}
	d.used[top] = true
	seen := map[digest.Digest]bool{top: true}
	first := 0
	var add func(m *manifest)
	add = func(m *manifest) {
		for _, r := range m.references {
			if seen[r.Digest] {
				continue
			}
			seen[r.Digest] = true
			s.count.Referenced++
			kind := evict.Layer
			if r.Role == oci.RoleManifest {
				kind = evict.Revision
			}
			if !d.serves(repository, r.Digest, kind) {
				continue
			}
			p := d.objects[r.Digest]
			if p.Size != r.Size {
				d.addWrongSize(p, fmt.Sprintf("it has %d bytes, but a manifest of repository %s requires %d", p.Size, repository, r.Size))
				continue
			}
			var inner *manifest
			if kind == evict.Revision {
				if inner = d.read(r.Digest); inner == nil {
					continue
				}
			}
			d.used[r.Digest] = true
			s.count.Present++
			s.size += p.Size
			if p.Reason != "" {
				s.layers.Objects++
				s.layers.SizeBytes += p.Size
				if first == 0 || p.Rank < first {
					first = p.Rank
					s.layers.First = &Layer{Digest: p.Digest, Eviction: eviction(p)}
				}
			}
			if inner != nil {
				add(inner)
			}
		}
	}
	add(d.manifests[top])
	return s
}

func (d *describer) orphans(candidates []evict.Candidate) {
	for i := range candidates {
		p := &candidates[i]
		o := Orphan{Digest: p.Digest}
		o.describe(p)
		switch {
		case d.used[p.Digest] || d.corrupt[p.Digest] || d.wrongSize[p.Digest] || d.deleted[p.Digest]:
			continue
		case p.Stored:
			o.Kind, o.Path, o.Note = Content, d.content.Path(p.Digest), "no image refers to it"
			if !slices.ContainsFunc(p.Links, func(l evict.Link) bool { return l.Kind != evict.Tag }) {
				o.Note = "no link"
			}
		default:
			o.Kind, o.Path, o.Note = Links, d.content.LinkPath(p.Digest, p.Links[0]), "the content is missing"
		}
		d.report.Orphans = append(d.report.Orphans, o)
	}
	for _, u := range d.content.Unfinished {
		o := Orphan{Kind: Unfinished, Path: u.Path, Digest: u.Digest, SizeBytes: u.Size, LastUse: second(u.Written),
			Note: "in progress, or a partial download"}
		if u.Repository != "" {
			o.Note = "of a stock registry (deleted at the next start)"
			if d.report.Policy.TTLSeconds == 0 {
				o.Note = "of a stock registry (kept: garbage collection is disabled)"
			}
		}
		d.report.Totals.UnfinishedSizeBytes += u.Size
		d.report.Orphans = append(d.report.Orphans, o)
	}
	kinds := []Kind{Corrupt, Links, Content, Unfinished}
	slices.SortFunc(d.report.Orphans, func(a, b Orphan) int {
		return cmp.Or(
			cmp.Compare(slices.Index(kinds, a.Kind), slices.Index(kinds, b.Kind)),
			a.LastUse.Compare(b.LastUse),
			strings.Compare(a.Path, b.Path),
		)
	})
}

func eviction(p *evict.Candidate) Eviction {
	return Eviction{Reason: p.Reason, Now: p.Now, Rank: p.Rank, Expires: second(p.Expires)}
}

func linksOf(links []evict.Link) []Link {
	var named []Link
	for _, l := range links {
		kind := "layer"
		switch l.Kind {
		case evict.Revision:
			kind = "revision"
		case evict.Tag:
			kind = "tag"
		}
		named = append(named, Link{Kind: kind, Repository: l.Repository, Tag: l.Tag})
	}
	slices.SortFunc(named, func(a, b Link) int {
		return cmp.Or(strings.Compare(a.Repository, b.Repository), strings.Compare(a.Kind, b.Kind), strings.Compare(a.Tag, b.Tag))
	})
	return named
}

// second truncates a time to the precision of the report.
func second(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Second)
}
