// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"

	"github.com/registry-cache/extension/pkg/oci"
)

func (h *Handler) serveTags(w *response, r *http.Request, target target) {
	query := listQuery(r)
	if n, given := query["n"]; given {
		if _, err := strconv.ParseUint(n[0], 10, 31); err != nil {
			w.writeError(r, http.StatusBadRequest, oci.CodePageInvalid, fmt.Errorf("n is %q: it must be the maximum number of tags", n[0]))
			return
		}
	}
	page, err := h.cache.Tags(r.Context(), target.repository, query)
	if err != nil {
		w.writeCacheError(r, oci.CodeNameUnknown, err)
		return
	}
	w.setOutcome(page.Outcome)
	w.Header().Set("Content-Type", "application/json")
	linkNext(w, r, page.Next)
	// The characters of a valid repository need no escaping in JSON.
	body := concatenation{`{"name":"`, target.repository, `","tags":`, page.Tags.JSON(), "}"}
	serveContent(w, r, io.NewSectionReader(body, 0, body.size()))
}

func (h *Handler) serveReferrers(w *response, r *http.Request, target target) {
	d, err := oci.ParseDigest(target.reference)
	if err != nil {
		w.writeError(r, http.StatusBadRequest, oci.CodeDigestInvalid, err)
		return
	}
	page, err := h.cache.Referrers(r.Context(), target.repository, d, listQuery(r))
	if err != nil {
		w.writeCacheError(r, oci.CodeUnsupported, err)
		return
	}
	w.setOutcome(page.Outcome)
	w.Header().Set("Content-Type", oci.MediaTypeIndex)
	if page.FiltersApplied != "" {
		w.Header().Set("OCI-Filters-Applied", page.FiltersApplied)
	}
	linkNext(w, r, page.Next)
	serveContent(w, r, bytes.NewReader(page.Index))
}

// concatenation reads several strings as one. A list of tags can have several MiB and must not be copied for the response.
type concatenation []string

func (c concatenation) size() int64 {
	size := 0
	for _, part := range c {
		size += len(part)
	}
	return int64(size)
}

// ReadAt implements io.ReaderAt.
func (c concatenation) ReadAt(p []byte, offset int64) (int, error) {
	n := 0
	for _, part := range c {
		if offset >= int64(len(part)) {
			offset -= int64(len(part))
			continue
		}
		n += copy(p[n:], part[offset:])
		offset = 0
		if n == len(p) {
			return n, nil
		}
	}
	return n, io.EOF
}

// listQuery returns the query without the parameter ns, which belongs to this server.
func listQuery(r *http.Request) url.Values {
	query := r.URL.Query()
	query.Del("ns")
	return query
}

// linkNext adds the header Link (RFC 8288) with the URL of the next page, relative to this server. A nil query means that
// there is no next page.
func linkNext(w http.ResponseWriter, r *http.Request, query url.Values) {
	if query == nil {
		return
	}
	query = maps.Clone(query)
	query.Del("ns")
	if ns := r.URL.Query().Get("ns"); ns != "" {
		query.Set("ns", ns)
	}
	next := url.URL{Path: r.URL.Path, RawQuery: query.Encode()}
	w.Header().Set("Link", fmt.Sprintf(`<%s>; rel="next"`, next.String()))
}
