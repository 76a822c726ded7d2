// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

const (
	// maxUnusedBody is the number of bytes that are read from a body that nothing uses: the body of a redirect, a
	// challenge or an error. Reading a small body to its end allows the next request to use the same connection.
	maxUnusedBody = 4 << 10
	// unusedBodyTimeout limits that reading. A small body usually arrives in the same packet as the header. An upstream
	// that sends its error bodies slowly must not delay the response to a client: containerd stops waiting for a header
	// after 30 s.
	unusedBodyTimeout = 250 * time.Millisecond
)

// responseTransport sends requests and prepares their responses for all users of the client, including the token
// exchange and redirects:
//
//   - Every request has "Accept-Encoding: identity". Without this header, an upstream may apply any coding (RFC 9110,
//     section 12.5.3).
//   - The body of a response with a status other than 2xx is read for at most unusedBodyTimeout and replaced by an empty
//     body. No caller uses such a body.
//   - The body of a response with a content coding is decoded, see decodeContent.
//
// It is safe for concurrent use.
type responseTransport struct {
	next      http.RoundTripper
	userAgent string // empty means the default of net/http
	httpsOnly bool   // refuse URLs with another scheme
}

// RoundTrip implements http.RoundTripper.
func (t *responseTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if t.httpsOnly && req.URL.Scheme != "https" {
		return nil, fmt.Errorf("refusing %s to %s: the remote URL is https", req.URL.Scheme, req.URL.Host)
	}
	ctx, cancel := context.WithCancel(req.Context())
	req = req.Clone(ctx)
	req.Header.Set("Accept-Encoding", "identity")
	if t.userAgent != "" {
		req.Header.Set("User-Agent", t.userAgent)
	}
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		cancel()
		return nil, err
	}
	resp.Body = &requestBody{ReadCloser: resp.Body, cancel: cancel}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		discardBody(resp.Body, cancel)
		resp.Body = http.NoBody
		return resp, nil
	}
	if err := decodeContent(resp); err != nil {
		discardBody(resp.Body, cancel)
		return nil, err
	}
	return resp, nil
}

// requestBody ends the context of its request when it is closed.
type requestBody struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *requestBody) Close() error {
	err := b.ReadCloser.Close()
	b.cancel()
	return err
}

// discardBody reads and closes a body that nothing uses. Errors are ignored: they can only prevent that the connection
// is used again.
func discardBody(body io.ReadCloser, cancel context.CancelFunc) {
	timer := time.AfterFunc(unusedBodyTimeout, cancel)
	defer timer.Stop()
	_, _ = io.CopyN(io.Discard, body, maxUnusedBody)
	_ = body.Close()
}
