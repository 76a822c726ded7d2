// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/oci"
)

const (
	// maxListSize is the maximum size of one page of tags or referrers, in bytes. An index of referrers is a manifest, and
	// 4 MiB contain 30 000 tags of the maximum length.
	maxListSize = oci.MaxManifestSize
	// maxNextSize is the maximum size of the query for the next page, in bytes. The client sends it back in a URL.
	maxNextSize = 2 << 10
)

// ErrNoIndex is wrapped by the error of a request for referrers if the response is no OCI index. Registries without the
// referrers API can send such responses.
var ErrNoIndex = errors.New("the answer is no OCI index")

// TagPage is a part of the tags of a repository.
type TagPage struct {
	// Tags are in the order of the upstream, which also chooses their number.
	Tags oci.TagList
	// Next is the query for the next page, nil if the response contains no link. Some registries send no link although there
	// are more tags.
	Next url.Values
}

// Referrers is a part of the manifests that refer to another one.
type Referrers struct {
	// Index is an OCI index.
	Index []byte
	// FiltersApplied is the header OCI-Filters-Applied of the response.
	FiltersApplied string
	// Next is the query for the next page, nil if there is none.
	Next url.Values
}

// Tags returns a page of the tags of a repository, of at most 4 MiB. The query has the parameters n and last of the
// distribution specification, or is Next of the previous page. Errors are *Error, or the context's.
func (c *Client) Tags(ctx context.Context, repository string, query url.Values) (*TagPage, error) {
	req := request{method: http.MethodGet, repository: repository, kind: "tags", reference: "list", query: query.Encode()}
	content, header, err := c.list(ctx, req)
	if err != nil {
		return nil, err
	}
	tags, err := oci.ParseTags(content)
	if err != nil {
		return nil, &Error{Op: req.String(), Err: err}
	}
	next, err := nextPage(header)
	if err != nil {
		return nil, &Error{Op: req.String(), Err: err}
	}
	return &TagPage{Tags: tags, Next: next}, nil
}

// Referrers returns a page of the manifests that refer to the one with the digest, of at most 4 MiB. The query has the
// parameter artifactType of the distribution specification, or is Next of the previous page. Errors are *Error, which can
// wrap ErrNoIndex, or the context's.
func (c *Client) Referrers(ctx context.Context, repository string, d digest.Digest, query url.Values) (*Referrers, error) {
	req := request{method: http.MethodGet, repository: repository, kind: "referrers", reference: d.String(), query: query.Encode()}
	content, header, err := c.list(ctx, req)
	if err != nil {
		return nil, err
	}
	if mediaType, err := oci.ManifestMediaType(content); err != nil || mediaType != oci.MediaTypeIndex {
		return nil, &Error{Op: req.String(), Err: ErrNoIndex}
	}
	next, err := nextPage(header)
	if err != nil {
		return nil, &Error{Op: req.String(), Err: err}
	}
	return &Referrers{Index: content, FiltersApplied: header.Get("OCI-Filters-Applied"), Next: next}, nil
}

// list returns the content and the header of a response.
func (c *Client) list(ctx context.Context, req request) ([]byte, http.Header, error) {
	resp, err := c.do(ctx, req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	content, err := readAll(resp, req, nil, maxListSize)
	return content, resp.Header, err
}

// nextPage returns the query of the link (RFC 8288) with the relation "next", or nil. Host and path of the link are ignored:
// the next page is requested with the path of this page.
func nextPage(header http.Header) (url.Values, error) {
	for _, value := range header.Values("Link") {
		for value != "" {
			_, rest, opened := strings.Cut(value, "<")
			target, rest, closed := strings.Cut(rest, ">")
			if !opened || !closed {
				break
			}
			parameters, more, _ := strings.Cut(rest, ",")
			value = more
			if !isNext(parameters) {
				continue
			}
			u, err := url.Parse(target)
			if err != nil {
				return nil, errors.New("the link to the next page is no URL")
			}
			query, err := url.ParseQuery(u.RawQuery)
			if err != nil {
				return nil, errors.New("the link to the next page has a query that cannot be read")
			}
			if len(query.Encode()) > maxNextSize {
				return nil, fmt.Errorf("the link to the next page has more than %d bytes", maxNextSize)
			}
			if len(query) == 0 {
				return nil, nil
			}
			return query, nil
		}
	}
	return nil, nil
}

// isNext reads the parameters of a link, `; rel="next"; title="..."`.
func isNext(parameters string) bool {
	for parameter := range strings.SplitSeq(parameters, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(parameter), "=")
		if !strings.EqualFold(strings.TrimSpace(name), "rel") {
			continue
		}
		for relation := range strings.FieldsSeq(strings.Trim(strings.TrimSpace(value), `"`)) {
			if strings.EqualFold(relation, "next") {
				return true
			}
		}
	}
	return false
}
