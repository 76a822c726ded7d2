// SPDX-License-Identifier: Apache-2.0

// Package httpapi is the pull part of the OCI distribution API (specification 1.1) of a pull-through cache.
package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/registry-cache/extension/pkg/cacheserver/blobs"
	"github.com/registry-cache/extension/pkg/cacheserver/download"
	"github.com/registry-cache/extension/pkg/cacheserver/manifests"
	"github.com/registry-cache/extension/pkg/cacheserver/pullthrough"
	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/oci"
)

const (
	// defaultStallTimeout is the time in which a client must receive writeChunk of a file, about 17 KiB/s, or 32 KiB of any
	// other content. Slower responses end.
	defaultStallTimeout = time.Minute
	// maxURLSize bounds a URL, in bytes. The longest valid one has a repository of 255 characters, a digest and the query of
	// a list.
	maxURLSize = 4 << 10
	// bodyTimeout bounds the time in which a client sends a request body. No request of this API needs one.
	bodyTimeout = 10 * time.Second
)

// Cache is the content behind a Handler. *pullthrough.Cache implements it and documents the methods.
type Cache interface {
	Manifest(ctx context.Context, repository string, ref oci.Reference) (*manifests.Manifest, error)
	StatManifest(ctx context.Context, repository string, ref oci.Reference) (*manifests.Manifest, error)
	Blob(ctx context.Context, repository string, d digest.Digest, part download.Part) (blobs.Blob, error)
	StatBlob(ctx context.Context, repository string, d digest.Digest) (int64, result.Outcome, error)
	VerifyBlob(ctx context.Context, d digest.Digest, since time.Time) error
	ServedBlob(b blobs.Blob)
	UnreadableBlob(b blobs.Blob, err error)
	Tags(ctx context.Context, repository string, query url.Values) (*pullthrough.TagPage, error)
	Referrers(ctx context.Context, repository string, d digest.Digest, query url.Values) (*pullthrough.Referrers, error)
}

// Options are the optional parts of a Handler.
type Options struct {
	// Usable returns the reason why clients must not use the cache. It is sent as the response to GET /v2/ with the status
	// 503. It must return immediately. Default: the cache is always usable.
	Usable func() error
	// StallTimeout is the time in which a client must receive 1 MiB of a file, or 32 KiB of any other content. Default 1 min.
	StallTimeout time.Duration
	// Logger receives one line for each request. Default: discarded.
	Logger *slog.Logger
	// Registerer receives the metrics. Default: none.
	Registerer prometheus.Registerer
}

// Handler serves GET and HEAD below /v2/. It never responds with 429 or 408, because containerd repeats such requests
// immediately, and never with a redirect. It is safe for concurrent use.
type Handler struct {
	host         string
	cache        Cache
	usable       func() error
	stallTimeout time.Duration
	log          *slog.Logger
	metrics      *metrics
	repeats      *repeats
}

// New returns the handler for the cache of one upstream. host is the registry host in image references. If a request has
// the parameter ns, which containerd adds for mirrors, its value must be this host.
func New(host string, cache Cache, o Options) *Handler {
	if o.StallTimeout == 0 {
		o.StallTimeout = defaultStallTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Usable == nil {
		o.Usable = func() error { return nil }
	}
	return &Handler{host: host, cache: cache, usable: o.Usable, stallTimeout: o.StallTimeout, log: o.Logger, metrics: newMetrics(o.Registerer), repeats: newRepeats()}
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec := newResponse(w, h.stallTimeout, r.TLS != nil)
	if r.ContentLength != 0 {
		// The HTTP server reads a small body before it sends the response.
		_ = rec.recordErr(rec.limitReading(bodyTimeout))
	}
	target := parsePath(r.URL.Path)
	start := time.Now()
	// Deferred, because a response that must not look complete ends with a panic.
	defer func() { h.recordResponse(r, target.kind, rec, time.Since(start)) }()
	h.serve(rec, r, target)
}

func (h *Handler) serve(w *response, r *http.Request, target target) {
	w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if len(r.RequestURI) > maxURLSize {
		w.writeError(r, http.StatusRequestURITooLong, oci.CodeUnsupported, fmt.Errorf("the URL has %d bytes, %d are allowed", len(r.RequestURI), maxURLSize))
		return
	}
	if ns := r.URL.Query().Get("ns"); ns != "" && !strings.EqualFold(ns, h.host) {
		w.writeError(r, http.StatusNotFound, oci.CodeNameUnknown, fmt.Errorf("this is a cache of %s, not of %q", h.host, ns))
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		w.writeError(r, http.StatusMethodNotAllowed, oci.CodeUnsupported, errors.New("pull-only registry: method not allowed"))
		return
	}
	switch target.kind {
	case kindPing:
		if err := h.usable(); err != nil {
			w.writeError(r, http.StatusServiceUnavailable, oci.CodeUnavailable, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		serveContent(w, r, strings.NewReader("{}"))
		return
	case kindOther:
		w.writeError(r, http.StatusMethodNotAllowed, oci.CodeUnsupported, errors.New("pull-only registry: it serves manifests, blobs, tags and referrers"))
		return
	}
	if err := oci.ValidateRepository(target.repository); err != nil {
		w.writeError(r, http.StatusBadRequest, oci.CodeNameInvalid, err)
		return
	}
	switch target.kind {
	case kindManifest:
		h.serveManifest(w, r, target)
	case kindBlob:
		h.serveBlob(w, r, target)
	case kindTags:
		h.serveTags(w, r, target)
	case kindReferrers:
		h.serveReferrers(w, r, target)
	}
}

func (h *Handler) serveManifest(w *response, r *http.Request, target target) {
	ref, err := oci.ParseReference(target.reference)
	switch {
	case errors.Is(err, oci.ErrDigestInvalid):
		w.writeError(r, http.StatusBadRequest, oci.CodeDigestInvalid, err)
		return
	case err != nil:
		w.writeError(r, http.StatusNotFound, oci.CodeManifestUnknown, err)
		return
	}
	get := h.cache.Manifest
	if r.Method == http.MethodHead {
		get = h.cache.StatManifest
	}
	m, err := get(r.Context(), target.repository, ref)
	if err != nil {
		w.writeCacheError(r, oci.CodeManifestUnknown, err)
		return
	}
	w.setOutcome(m.Outcome)
	describe(w, m.Digest, m.MediaType)
	if m.Content == nil {
		w.Header().Set("Content-Length", strconv.FormatInt(m.Size, 10))
		w.WriteHeader(http.StatusOK)
		return
	}
	serveContent(w, r, bytes.NewReader(m.Content))
}

func (h *Handler) serveBlob(w *response, r *http.Request, target target) {
	d, err := oci.ParseDigest(target.reference)
	if err != nil {
		w.writeError(r, http.StatusBadRequest, oci.CodeDigestInvalid, err)
		return
	}
	if r.Method == http.MethodHead {
		size, outcome, err := h.cache.StatBlob(r.Context(), target.repository, d)
		if err != nil {
			w.writeCacheError(r, oci.CodeBlobUnknown, err)
			return
		}
		w.outcome = outcome
		describe(w, d, "application/octet-stream")
		w.Header().Set("Accept-Ranges", "bytes")
		if size >= 0 {
			w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		}
		w.WriteHeader(http.StatusOK)
		return
	}
	ctx := r.Context()
	r = withRange(r, etag(d))
	part := requestedPart(r.Header.Get("Range"))
	if err := h.verifyRepeated(ctx, r.RemoteAddr, d, part); err != nil {
		w.writeCacheError(r, oci.CodeBlobUnknown, err)
		return
	}
	b, err := h.cache.Blob(ctx, target.repository, d, part)
	if err != nil {
		w.writeCacheError(r, oci.CodeBlobUnknown, err)
		return
	}
	defer func() {
		w.outcome, w.shared = b.Outcome(), b.Shared()
		w.err = errors.Join(w.err, b.Close())
	}()
	// After the header, an error can only end the connection. A client would then resume here until it gives up, and never
	// request the upstream.
	start := part.Start(b.Size())
	if b.Size() < 0 {
		start = 0 // a response without a size has all bytes
	}
	if err := b.Await(ctx, start); err != nil {
		w.writeCacheError(r, oci.CodeBlobUnknown, err)
		return
	}
	describe(w, d, "application/octet-stream")
	if b.Size() < 0 {
		if _, err := io.Copy(w, b); err != nil {
			w.err = err
			// Without a length, only the end of the connection shows that bytes are missing.
			panic(http.ErrAbortHandler)
		}
		return
	}
	content := io.ReadSeeker(b)
	if _, file := content.(syscall.Conn); !file {
		content = &watched{Blob: b, err: &w.err}
	}
	// After an error it returns with less than it has announced, and the server closes the connection.
	end := guard(ctx, b)
	serveContent(w, r, content)
	w.err = errors.Join(w.err, end())
	switch {
	case b.Outcome() != result.Hit:
	case w.readErr != nil:
		h.cache.UnreadableBlob(b, w.readErr)
	case w.sent > 0:
		h.repeats.received(r.RemoteAddr, d, w.sent, b.Size(), time.Now())
		h.cache.ServedBlob(b)
	}
}

// verifyRepeated verifies a stored blob if the client has received all of it a short time ago, and requests its first byte
// again. It returns an error if the client should pull from the upstream, because the verification takes long.
func (h *Handler) verifyRepeated(ctx context.Context, client string, d digest.Digest, part download.Part) error {
	complete, suspicious := h.repeats.suspicious(client, d, time.Now())
	if !suspicious || part.First > 0 || part.Suffix > 0 {
		return nil
	}
	if part.Length == 0 {
		return h.cache.VerifyBlob(ctx, d, complete)
	}
	// Lazy snapshotters read parts again and again, and report an error to the container. The verification continues.
	ctx, cancel := context.WithTimeout(ctx, partVerifyTime)
	defer cancel()
	_ = h.cache.VerifyBlob(ctx, d, complete)
	return nil
}

// partVerifyTime is how long a client that reads parts waits for a verification.
const partVerifyTime = 100 * time.Millisecond

// requestedPart returns the part of a blob that a normalized header Range requires: see oneRange. Without a range, it is the
// whole blob.
func requestedPart(header string) download.Part {
	spec, isBytes := strings.CutPrefix(header, "bytes=")
	first, last, isRange := strings.Cut(spec, "-")
	if !isBytes || !isRange {
		return download.Part{}
	}
	from, fromErr := strconv.ParseInt(first, 10, 64)
	to, toErr := strconv.ParseInt(last, 10, 64)
	switch {
	case first == "" && toErr == nil && to > 0:
		return download.Part{Suffix: to}
	case fromErr != nil || from < 0:
		return download.Part{}
	case last == "":
		return download.Part{First: from}
	case toErr == nil && to >= from && to < math.MaxInt64:
		return download.Part{First: from, Length: to - from + 1}
	}
	return download.Part{}
}

func describe(w http.ResponseWriter, d digest.Digest, mediaType string) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("ETag", etag(d))
}

func etag(d digest.Digest) string { return `"` + d.String() + `"` }

// watched records the error of a read, which http.ServeContent does not return.
type watched struct {
	blobs.Blob
	err *error
}

func (r *watched) Read(p []byte) (int, error) {
	n, err := r.Blob.Read(p)
	return n, r.recordErr(err)
}

// Chunk returns the next bytes as a part of a file if the blob has them in one, see download.Reader.
func (r *watched) Chunk(limit int64) (*io.LimitedReader, error) {
	source, ok := r.Blob.(chunked)
	if !ok {
		return nil, nil
	}
	chunk, err := source.Chunk(limit)
	return chunk, r.recordErr(err)
}

// Sent ends the use of a chunk.
func (r *watched) Sent(n int64, unreadable error) {
	if source, ok := r.Blob.(chunked); ok {
		source.Sent(n, unreadable)
	}
}

func (r *watched) recordErr(err error) error {
	if err != nil && err != io.EOF {
		*r.err = err
	}
	return err
}

// chunked is content that grows in a file. *download.Reader is one.
type chunked interface {
	Chunk(limit int64) (*io.LimitedReader, error)
	Sent(n int64, unreadable error)
}
