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
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/oci"
)

// Inspect reports on the volume of root as of now, under the policy. It changes nothing there. What is missing or broken
// is part of the report; errors are those of store.Look.
func Inspect(ctx context.Context, root string, p evict.Policy, now time.Time) (*Report, error) {
	survey, err := store.Look(ctx, root, now)
	if err != nil {
		return nil, err
	}
	return describe(root, survey, p, now), nil
}

func describe(root string, survey *store.Survey, p evict.Policy, now time.Time) *Report {
	d := &describer{
		survey:    survey,
		objects:   map[digest.Digest]*evict.Prospect{},
		manifests: map[digest.Digest]*manifest{},
		tags:      map[image][]string{},
		broken:    map[digest.Digest]bool{},
		torn:      map[link]bool{},
		wrongSize: map[digest.Digest]bool{},
		deleted:   map[digest.Digest]bool{},
		used:      map[digest.Digest]bool{},
		report: &Report{
			Root:   root,
			Time:   second(now),
			Policy: Policy{TTLSeconds: int64(p.TTL / time.Second), HighWatermarkPercent: p.HighWatermark, LowWatermarkPercent: p.LowWatermark},
			Images: []Image{},
			Others: []Other{},
		},
	}
	prospects := survey.Index.Forecast(now, p, survey.Volume)
	d.volume(survey.Volume)
	d.objectsOf(prospects)
	for _, b := range survey.Broken {
		d.addBroken(b)
	}
	d.images(prospects)
	d.others(prospects)
	return d.report
}

// describer makes a report.
type describer struct {
	report    *Report
	survey    *store.Survey
	objects   map[digest.Digest]*evict.Prospect
	manifests map[digest.Digest]*manifest
	tags      map[image][]string
	// broken is content, and torn are links, that nothing is served from.
	broken map[digest.Digest]bool
	torn   map[link]bool
	// wrongSize is content that an image cannot use. Another may, because either the content or the image is wrong.
	wrongSize map[digest.Digest]bool
	// deleted is what has gone since the survey.
	deleted map[digest.Digest]bool
	// used is content that belongs to an image.
	used map[digest.Digest]bool
}

type image struct {
	repository string
	digest     digest.Digest
}

type link struct {
	evict.Link
	digest digest.Digest
}

// manifest is one that can be served.
type manifest struct {
	mediaType  string
	references []oci.Descriptor
}

func (d *describer) volume(v evict.Volume) {
	if v.Limit <= 0 {
		return
	}
	d.report.Volume = &Volume{
		UsedBytes:   v.Used,
		LimitBytes:  v.Limit,
		FreeBytes:   v.Limit - v.Used,
		UsedPercent: float64(v.Used) * 100 / float64(v.Limit),
	}
}

func (d *describer) objectsOf(prospects []evict.Prospect) {
	t := &d.report.Totals
	t.LastUsesRecorded = second(d.survey.Recorded)
	for i := range prospects {
		p := &prospects[i]
		d.objects[p.Digest] = p
		if !p.Stored {
			continue
		}
		t.Objects++
		t.SizeBytes += p.Size
		if p.Now {
			t.GoingObjects++
			t.GoingSizeBytes += p.Size
		}
		if used := second(p.LastUse); t.OldestUse.IsZero() || used.Before(t.OldestUse) {
			t.OldestUse = used
		}
	}
}

func (d *describer) addBroken(b store.Broken) {
	o := Other{Kind: Broken, Path: b.Path, Digest: b.Digest, Note: b.Err.Error()}
	switch p := d.objects[b.Digest]; {
	case b.Link != nil:
		d.torn[link{*b.Link, b.Digest}] = true
		o.Links = linksOf([]evict.Link{*b.Link})
		if p != nil {
			o.Eviction = eviction(p)
		}
	case p != nil:
		d.broken[b.Digest] = true
		o.describe(p)
	}
	d.report.Others = append(d.report.Others, o)
}

func (d *describer) addWrongSize(p *evict.Prospect, note string) {
	if d.wrongSize[p.Digest] {
		return
	}
	d.wrongSize[p.Digest] = true
	o := Other{Kind: Broken, Path: d.survey.Path(p.Digest), Digest: p.Digest, Note: note}
	o.describe(p)
	d.report.Others = append(d.report.Others, o)
}

func (o *Other) describe(p *evict.Prospect) {
	o.SizeBytes, o.LastUse, o.Eviction, o.Links = p.Size, second(p.LastUse), eviction(p), linksOf(p.Links)
}

// serves says whether content can be served through a link of the kind.
func (d *describer) serves(repository string, dgst digest.Digest, kind evict.Kind) bool {
	p, l := d.objects[dgst], evict.Link{Kind: kind, Repository: repository}
	return p != nil && p.Stored && !d.broken[dgst] && slices.Contains(p.Links, l) && !d.torn[link{l, dgst}]
}

func (d *describer) images(prospects []evict.Prospect) {
	for _, t := range d.survey.Tags {
		i := image{t.Repository, t.Digest}
		d.tags[i] = append(d.tags[i], t.Name)
	}
	var all []image
	inner := map[image]bool{}
	for _, p := range prospects {
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

// read returns what a manifest refers to, or nil if it cannot be served.
func (d *describer) read(dgst digest.Digest) *manifest {
	if m, known := d.manifests[dgst]; known {
		return m
	}
	d.manifests[dgst] = nil
	content, err := d.survey.Manifest(dgst)
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
	if err != nil {
		d.addBroken(store.Broken{Path: d.survey.Path(dgst), Digest: dgst, Err: err})
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
		Parts:      sum.parts,
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

// sum is about a manifest and all that it refers to.
type sum struct {
	size  int64
	count Count
	parts Parts
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
				d.addWrongSize(p, fmt.Sprintf("it has %d bytes, an image of repository %s wants %d", p.Size, repository, r.Size))
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
				s.parts.Objects++
				s.parts.SizeBytes += p.Size
				if first == 0 || p.Rank < first {
					first = p.Rank
					s.parts.First = &Part{Digest: p.Digest, Eviction: eviction(p)}
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

func (d *describer) others(prospects []evict.Prospect) {
	for i := range prospects {
		p := &prospects[i]
		o := Other{Digest: p.Digest}
		o.describe(p)
		switch {
		case d.used[p.Digest] || d.broken[p.Digest] || d.wrongSize[p.Digest] || d.deleted[p.Digest]:
			continue
		case p.Stored:
			o.Kind, o.Path, o.Note = Content, d.survey.Path(p.Digest), "belongs to no image"
			if !slices.ContainsFunc(p.Links, func(l evict.Link) bool { return l.Kind != evict.Tag }) {
				o.Note = "no repository has it"
			}
		default:
			o.Kind, o.Path, o.Note = Links, d.survey.LinkPath(p.Digest, p.Links[0]), "the content is not there"
		}
		d.report.Others = append(d.report.Others, o)
	}
	for _, u := range d.survey.Unfinished {
		o := Other{Kind: Incomplete, Path: u.Path, Digest: u.Digest, SizeBytes: u.Size, LastUse: second(u.Written),
			Note: "is being downloaded, or goes when the server starts"}
		if u.Repository != "" {
			o.Note = "of a stock registry, goes when the server starts"
			if d.report.Policy.TTLSeconds == 0 {
				o.Note = "of a stock registry, stays because nothing is deleted"
			}
		}
		d.report.Totals.UnfinishedSizeBytes += u.Size
		d.report.Others = append(d.report.Others, o)
	}
	kinds := []Kind{Broken, Links, Content, Incomplete}
	slices.SortFunc(d.report.Others, func(a, b Other) int {
		return cmp.Or(
			cmp.Compare(slices.Index(kinds, a.Kind), slices.Index(kinds, b.Kind)),
			a.LastUse.Compare(b.LastUse),
			strings.Compare(a.Path, b.Path),
		)
	})
}

func eviction(p *evict.Prospect) Eviction {
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

// second cuts a time to what the report promises.
func second(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Second)
}
