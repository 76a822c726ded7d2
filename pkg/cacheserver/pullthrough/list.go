// SPDX-License-Identifier: Apache-2.0

package pullthrough

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/answers"
	"github.com/registry-cache/extension/pkg/cacheserver/background"
	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/oci"
)

// maxListsSize limits the memory for lists of tags and for referrers, in bytes each: thousands of answers of some KiB.
const maxListsSize = 16 << 20

// TagPage is an answer with tags.
type TagPage struct {
	Tags oci.TagList
	// Next is the query of the next page; nil on the last page. It must not be modified.
	Next    url.Values
	Outcome result.Outcome
}

// Referrers is an answer with the manifests that refer to another manifest.
type Referrers struct {
	// Index is an OCI index. It must not be modified.
	Index []byte
	// FiltersApplied is empty, or "artifactType" if the index contains only the type of the query.
	FiltersApplied string
	// Next is the query of the next page; nil on the last page. It must not be modified.
	Next    url.Values
	Outcome result.Outcome
}

// listKey identifies a page. subject is empty for a list of tags, query is encoded.
type listKey struct {
	repository string
	subject    digest.Digest
	query      string
}

// LogValue implements slog.LogValuer. Logs contain no queries.
func (k listKey) LogValue() slog.Value {
	if k.subject == "" {
		return slog.StringValue(k.repository)
	}
	return slog.StringValue(k.repository + "@" + k.subject.String())
}

func (k listKey) size() int64 { return int64(len(k.repository) + len(k.subject) + len(k.query)) }

// lists are the lists of tags and the referrers of one upstream.
type lists struct {
	upstream  Upstream
	tags      *answers.Table[listKey, TagPage]
	referrers *answers.Table[listKey, Referrers]
}

func newLists(group *background.Group, u Upstream, o Options) *lists {
	lifetimes := answers.Lifetimes{Fresh: o.RevalidateAfter, FreshNegative: o.RevalidateAfter, MaxStale: o.MaxStale}
	return &lists{
		upstream: u,
		tags: answers.New(group, answers.Options[listKey, TagPage]{
			Kind:      "tags",
			Lifetimes: lifetimes,
			MaxSize:   maxListsSize,
			Size:      func(k listKey, page TagPage) int64 { return k.size() + int64(page.Tags.Size()) },
			Logger:    o.Logger,
		}),
		referrers: answers.New(group, answers.Options[listKey, Referrers]{
			Kind:      "referrers",
			Lifetimes: lifetimes,
			MaxSize:   maxListsSize,
			Size:      func(k listKey, page Referrers) int64 { return k.size() + int64(len(page.Index)) },
			Classify:  classifyReferrers,
			Logger:    o.Logger,
		}),
	}
}

// tagPage returns a page of the tags of a repository. The query may contain n, the size of the page, and last, the tag before
// the page; other parameters are those of the upstream, from the field Next of a page. It applies n and last itself if the
// upstream ignores them. Errors are *result.Error.
func (l *lists) tagPage(ctx context.Context, repository string, query url.Values) (*TagPage, error) {
	key := listKey{repository: repository, query: query.Encode()}
	answer, err := l.tags.Get(ctx, key, func(ctx context.Context) (TagPage, error) {
		got, err := l.upstream.Tags(ctx, repository, query)
		if err != nil {
			return TagPage{}, err
		}
		return paginate(got.Tags, got.Next, query), nil
	})
	if err != nil {
		return nil, result.Explain(err)
	}
	page := answer.Value
	page.Outcome = answer.Outcome
	return &page, nil
}

// referrersPage returns a page of the manifests in the repository that refer to the manifest with the digest. The query may
// contain artifactType; other parameters are those of the upstream, from the field Next of a page. Errors are *result.Error;
// the reason NotFound means that the upstream has no referrers API, so that clients request the fallback tag.
func (l *lists) referrersPage(ctx context.Context, repository string, d digest.Digest, query url.Values) (*Referrers, error) {
	key := listKey{repository: repository, subject: d, query: query.Encode()}
	answer, err := l.referrers.Get(ctx, key, func(ctx context.Context) (Referrers, error) {
		got, err := l.upstream.Referrers(ctx, repository, d, query)
		if err != nil {
			return Referrers{}, err
		}
		return Referrers{Index: got.Index, FiltersApplied: got.FiltersApplied, Next: got.Next}, nil
	})
	if class, _ := classifyReferrers(err); err != nil && class == answers.Negative {
		return nil, &result.Error{Reason: result.NotFound, Err: err}
	}
	if err != nil {
		return nil, result.Explain(err)
	}
	page := answer.Value
	page.Outcome = answer.Outcome
	return &page, nil
}

// classifyReferrers returns Negative if the upstream has no referrers API. Registries without it return one of these status
// codes, or a document that is not an index.
func classifyReferrers(err error) (answers.Class, time.Duration) {
	failed, ok := errors.AsType[*upstream.Error](err)
	if !ok {
		return answers.Classify(err)
	}
	switch failed.StatusCode {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented:
		return answers.Negative, 0
	}
	if errors.Is(err, upstream.ErrNoIndex) {
		return answers.Negative, 0
	}
	return answers.Classify(err)
}

// paginate returns the page that the query requests from the upstream's page, which may start with the last tag of the
// previous page or contain all tags. It requires no order of the tags, because registries sort differently.
func paginate(tags oci.TagList, next, query url.Values) TagPage {
	limit, err := strconv.Atoi(query.Get("n"))
	if err != nil || limit < 0 {
		limit = -1
	}
	if limit == 0 {
		return TagPage{}
	}
	page, last := tags.Page(query.Get("last"), limit)
	if last != "" {
		next = maps.Clone(query)
		next.Set("last", last)
	}
	if next.Encode() == query.Encode() {
		// The client would request this page again and again.
		next = nil
	}
	return TagPage{Tags: page, Next: next}
}
