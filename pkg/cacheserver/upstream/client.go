// SPDX-License-Identifier: Apache-2.0

// Package upstream is the client of the upstream: it requests manifests, blobs and lists, follows redirects, authenticates,
// and limits time and size of each response. docs/development/upstreams.md compares its behaviour with containerd's.
package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/registry-cache/extension/pkg/cacheserver/background"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream/auth"
	"github.com/registry-cache/extension/pkg/contract"
	"github.com/registry-cache/extension/pkg/oci"
)

const (
	// defaultHeaderTimeout allows upstreams that are caches themselves to contact their own upstream: zot was measured with
	// up to 8 s for a tag, Harbor with up to 10 s. It leaves time for the queue, and for the response to the client.
	defaultHeaderTimeout = 25 * time.Second
	// connectTimeout limits connecting, and the TLS handshake. Both need a few round trips, also if the upstream is slow to
	// respond. It is shorter than the header timeout, so that clients do not wait for an unreachable upstream.
	connectTimeout     = 5 * time.Second
	defaultIdleTimeout = 10 * time.Second
	// defaultAnswerTimeout limits the body of a manifest or list, of at most 4 MiB.
	defaultAnswerTimeout = 15 * time.Second
	// completeTimeout limits a request including the queue: up to the header for a blob, and up to the last byte for a
	// manifest or list, because the client gets its header only after the content was verified.
	completeTimeout = contract.MaxAnswerTime
	// maxRedirects is the number of redirects that containerd follows.
	maxRedirects = 10
)

// Options are the optional parts of a Client.
type Options struct {
	// CAFile is a PEM file with CAs that are trusted in addition to those of the system. It is read again after a change.
	CAFile string
	// CredentialsDir is a folder with the files "username" and "password". They are read for each use. Empty means
	// anonymous.
	CredentialsDir string
	// ProxyCredentialsDir is a folder with the files "proxy-username" and "proxy-password" for the proxies in the environment
	// variables HTTP_PROXY and HTTPS_PROXY. They are read for each request. Empty means those in the URLs of the variables.
	ProxyCredentialsDir string
	// UserAgent is sent with every request; empty means Go's default.
	UserAgent string
	// HeaderTimeout is the time from the start of a request, including connecting and authenticating, to the end of the
	// header of the response. Default 25 s, at most contract.MaxAnswerTime. Connecting and the TLS handshake have their own limit
	// of 5 s each.
	HeaderTimeout time.Duration
	// IdleTimeout is the time in which a read of a body must return bytes. Default 10 s.
	IdleTimeout time.Duration
	// AnswerTimeout is the time from the header to the end of a response other than a blob. Such content is forwarded only
	// when it is complete. Default 15 s. A complete request, including the queue, takes at most 27 s.
	AnswerTimeout time.Duration
	// MaxTransfers and MaxRequests limit the concurrent requests for blobs, and the other concurrent requests. Default 128
	// each. Further requests wait in the order of their arrival, for at most QueueTimeout. Default 5 s.
	MaxTransfers, MaxRequests int
	QueueTimeout              time.Duration
	// Logger receives events without a caller, for example an unreadable CA file after a change. Default: discarded.
	Logger *slog.Logger
	// Registerer receives the metrics. Default: none.
	Registerer prometheus.Registerer
}

// Client sends requests to one registry. It is safe for concurrent use.
type Client struct {
	remote        *url.URL // without a path
	prefix        string   // path before the names of repositories, without slashes at its ends; can be empty
	transport     *reloadingTransport
	responses     *responseTransport // on top of transport
	auth          *auth.Authorizer
	work          *background.Group
	headerTimeout time.Duration
	idleTimeout   time.Duration
	answerTimeout time.Duration
	metrics       *metrics
	watcher       *watcher
	transfers     *queue
	requests      *queue
}

// New returns a client of the registry at remoteURL: scheme, host, port and path, see contract.ParseRemoteURL. It sends no
// request. Close releases its connections.
func New(remoteURL string, o Options) (*Client, error) {
	remote, err := url.Parse(remoteURL)
	if err != nil || remote.Host == "" {
		return nil, errors.New("parsing the remote URL: it must have scheme and host")
	}
	prefix := strings.TrimPrefix(path.Join("/", remote.Path), "/")
	remote = &url.URL{Scheme: remote.Scheme, Host: remote.Host}
	if o.HeaderTimeout == 0 {
		o.HeaderTimeout = defaultHeaderTimeout
	}
	if o.HeaderTimeout < 0 || o.HeaderTimeout > contract.MaxAnswerTime {
		return nil, fmt.Errorf("the header timeout must be at most %s", contract.MaxAnswerTime)
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = defaultIdleTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	transport, err := newReloadingTransport(o)
	if err != nil {
		return nil, err
	}
	responses := &responseTransport{next: transport, userAgent: o.UserAgent, httpsOnly: remote.Scheme == "https"}
	credentials, err := readCredentials(o.CredentialsDir, contract.UsernameKey, contract.PasswordKey)
	if err != nil {
		return nil, err
	}
	work := background.New()
	authorizer, err := auth.New(work, auth.Options{Registry: remote, Credentials: credentials, Transport: responses, Timeout: o.HeaderTimeout})
	if err != nil {
		return nil, err
	}
	metrics := newMetrics(o.Registerer)
	queueTimeout := cmp.Or(o.QueueTimeout, defaultQueueTimeout)
	return &Client{
		remote:        remote,
		prefix:        prefix,
		transport:     transport,
		responses:     responses,
		auth:          authorizer,
		work:          work,
		headerTimeout: o.HeaderTimeout,
		idleTimeout:   o.IdleTimeout,
		answerTimeout: cmp.Or(o.AnswerTimeout, defaultAnswerTimeout),
		metrics:       metrics,
		watcher:       newWatcher(o.CredentialsDir != ""),
		transfers:     newQueue(cmp.Or(o.MaxTransfers, defaultMaxTransfers), queueTimeout, metrics),
		requests:      newQueue(cmp.Or(o.MaxRequests, defaultMaxRequests), queueTimeout, metrics),
	}, nil
}

// Close ends requests for tokens and closes idle connections. Bodies that are still open stay usable.
func (c *Client) Close() {
	c.work.Close()
	c.transport.CloseIdleConnections()
}

// Descriptor is the description of a manifest in the header of a response.
type Descriptor struct {
	MediaType string
	// Digest is empty if the upstream sent none, or one with another algorithm than sha256.
	Digest digest.Digest
	// Size is in bytes, -1 if the header does not contain it.
	Size int64
}

// Manifest is a manifest with verified content.
type Manifest struct {
	MediaType string
	Digest    digest.Digest
	Content   []byte
}

// Blob is a body to be read to its end and closed. Reads fail with *Error; short bodies end with io.ErrUnexpectedEOF
// inside of it.
type Blob struct {
	io.ReadCloser
	// Offset is the position of the first byte of the body in the blob. It is the requested offset, or 0 if the upstream
	// sends the whole blob instead of the range (RFC 9110, section 14.2, allows that).
	Offset int64
	// Size of the whole blob in bytes, -1 if the response does not state it.
	Size int64
	// Ranges reports that the upstream supports ranges: it sent the requested one or, for a request of the whole blob, the
	// header "Accept-Ranges: bytes". A proxy in between can remove the header Range of requests and keep that one.
	Ranges bool
	// RateLimited reports that the upstream has refused the request with 429 before it sent this response.
	RateLimited bool

	receiving *receiving
}

// Queued returns how many bytes of the body are in the receive buffer of the connection, with those of TLS records. A
// caller that finds some before a Read is slower than the upstream. It returns 0 if the number is unknown. It must not be
// called after Close, when another request can use the connection.
func (b *Blob) Queued() int { return b.receiving.queued() }

// Range is the requested part of a blob. The zero value is the whole blob. It is requested without If-Range, because the
// caller verifies the digest: the nodes of an upstream can have different ETags for the same content.
type Range struct {
	// Offset is the first byte.
	Offset int64
	// End is the byte behind the last one. 0 requests everything from Offset on.
	End int64
}

// HeadManifest requests the digest, the media type and the size of a manifest. Errors are *Error, or the context's.
func (c *Client) HeadManifest(ctx context.Context, repository string, ref oci.Reference) (Descriptor, error) {
	resp, err := c.do(ctx, request{method: http.MethodHead, repository: repository, kind: "manifests", reference: ref.String()})
	if err != nil {
		return Descriptor{}, err
	}
	defer resp.Body.Close()
	d, err := oci.ParseDigest(resp.Header.Get("Docker-Content-Digest"))
	if err != nil {
		d = ""
	}
	return Descriptor{MediaType: resp.Header.Get("Content-Type"), Digest: d, Size: resp.ContentLength}, nil
}

// AnswerContext returns a context for all requests to the upstream that the response to a client needs. It ends
// contract.MaxAnswerTime after the request of the client began, with a timeout *Error of the operation op as its cause.
func AnswerContext(ctx context.Context, began time.Time, op string) (context.Context, context.CancelFunc) {
	return context.WithDeadlineCause(ctx, began.Add(contract.MaxAnswerTime), &Error{Op: op, Err: os.ErrDeadlineExceeded})
}

// HeadBlob returns the size of a blob in bytes, -1 if the upstream does not report it. Only a success of HEAD is final:
// Amazon's public registry responds 401 to HEAD of blobs that it sends to GET, and a registry that is a cache may respond
// 404 to HEAD until it has served GET (goharbor/harbor#22609). After any error status without
// Retry-After, the first byte is requested with GET. Errors are *Error, or the context's.
func (c *Client) HeadBlob(ctx context.Context, repository string, d digest.Digest) (int64, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, completeTimeout, errHeaderTimeout)
	defer cancel()
	req := request{method: http.MethodHead, repository: repository, kind: "blobs", reference: d.String()}
	resp, err := c.once(ctx, req)
	if refused, ok := errors.AsType[*Error](err); ok && refused.StatusCode != 0 && refused.RetryAfter == 0 {
		req.method, req.firstByte = http.MethodGet, true
		resp, err = c.do(ctx, req)
	}
	if err != nil {
		return 0, err
	}
	// The content of an upstream without ranges is not read; Close ends the connection.
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent {
		return resp.ContentLength, nil
	}
	size, err := rangeSize(resp.Header.Get("Content-Range"), 0)
	if err != nil {
		return 0, &Error{Op: req.String(), Err: err}
	}
	return size, nil
}

// Blob requests a blob or a part of it. The body can begin before the range and end behind it, see Blob.Offset. Its content
// is not verified. ctx must live as long as the body is read; the caller closes the body. Errors are *Error, or the
// context's.
func (c *Client) Blob(ctx context.Context, repository string, d digest.Digest, part Range) (*Blob, error) {
	req := request{method: http.MethodGet, repository: repository, kind: "blobs", reference: d.String(), part: part}
	r := &receiving{}
	limited := false
	resp, err := c.doObserved(r.trace(ctx), req, func(failed *Error) { limited = limited || failed.RateLimited() })
	if err != nil {
		return nil, err
	}
	blob := &Blob{
		ReadCloser:  resp.Body,
		Size:        resp.ContentLength,
		Ranges:      supportsRanges(req, resp),
		RateLimited: limited,
		receiving:   r,
	}
	if resp.StatusCode == http.StatusPartialContent {
		blob.Offset = part.Offset
		if blob.Size, err = rangeSize(resp.Header.Get("Content-Range"), part.Offset); err != nil {
			return nil, errors.Join(&Error{Op: req.String(), Err: err}, resp.Body.Close())
		}
	}
	return blob, nil
}

// supportsRanges reports whether the upstream supports ranges, as far as a response shows it.
func supportsRanges(req request, resp *http.Response) bool {
	if req.rangeHeader() != "" {
		return resp.StatusCode == http.StatusPartialContent
	}
	return strings.EqualFold(strings.TrimSpace(resp.Header.Get("Accept-Ranges")), "bytes")
}

// strongETag returns the ETag of a response if If-Range can contain it (RFC 9110, section 13.1.5), or "".
func strongETag(resp *http.Response) string {
	if etag := resp.Header.Get("ETag"); strings.HasPrefix(etag, `"`) {
		return etag
	}
	return ""
}

// ErrRange is the cause of an Error if the response states another range than the requested one.
var ErrRange = errors.New("the response has another range")

// rangeSize returns the size of the whole in the header Content-Range of an answer to "bytes=<offset>-". Errors are
// ErrRange.
func rangeSize(header string, offset int64) (int64, error) {
	span, ok := strings.CutPrefix(header, "bytes ")
	first, rest, dash := strings.Cut(span, "-")
	_, whole, slash := strings.Cut(rest, "/")
	start, err := strconv.ParseInt(first, 10, 64)
	if !ok || !dash || !slash || err != nil || start != offset {
		return 0, fmt.Errorf("%w: %q, requested from byte %d", ErrRange, header, offset)
	}
	if whole == "*" {
		return -1, nil
	}
	size, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || size <= offset {
		return 0, fmt.Errorf("%w: %q, requested from byte %d", ErrRange, header, offset)
	}
	return size, nil
}
