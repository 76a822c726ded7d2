// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream/auth"
	"github.com/registry-cache/extension/pkg/oci"
)

// request is a GET or HEAD below /v2/<repository>/.
type request struct {
	method, repository, kind, reference string
	// part is the requested part of the content.
	part Range
	// ifRange is the ETag of an earlier response whose content this one continues, or empty. An upstream whose content has
	// another ETag now sends all of it.
	ifRange string
	// firstByte requests the first byte only.
	firstByte bool
	// authorization is nil for a request that is not repeated.
	authorization *auth.Request
	// query is encoded. Errors do not contain it.
	query string
}

// String identifies the request in errors.
func (r request) String() string {
	return r.method + " " + r.repository + "/" + r.kind + "/" + r.reference
}

// rangeHeader returns the value of the header Range, empty for all content.
func (r request) rangeHeader() string {
	switch {
	case r.firstByte:
		return "bytes=0-0"
	case r.part.End > 0:
		return fmt.Sprintf("bytes=%d-%d", r.part.Offset, r.part.End-1)
	case r.part.Offset > 0:
		return fmt.Sprintf("bytes=%d-", r.part.Offset)
	}
	return ""
}

// do returns the response if its status is 200, or 206 for a request with a range. Otherwise it returns an *Error, or the
// context's error. The body is limited by the idle timeout. The caller closes it.
func (c *Client) do(ctx context.Context, r request) (*http.Response, error) {
	return c.doObserved(ctx, r, func(*Error) {})
}

// doObserved is do, and calls observe for each failure, whether the request is repeated or not.
func (c *Client) doObserved(ctx context.Context, r request, observe func(*Error)) (*http.Response, error) {
	r.authorization = c.authorization(r)
	return repeat(ctx, func() (*http.Response, error) {
		resp, err := c.once(ctx, r)
		if failed, ok := errors.AsType[*Error](err); ok {
			observe(failed)
		}
		return resp, err
	}, nil)
}

// once is do without repetition.
func (c *Client) once(ctx context.Context, r request) (*http.Response, error) {
	slots := c.requests
	if r.method == http.MethodGet && r.kind == "blobs" && !r.firstByte {
		slots = c.transfers
	}
	end := time.Now().Add(completeTimeout)
	if err := slots.acquire(ctx); err != nil {
		return nil, classify(ctx, r.String(), err)
	}
	release := sync.OnceFunc(slots.release)
	resp, err := c.send(ctx, r, end, release)
	if err != nil {
		release()
		return nil, err
	}
	if resp.StatusCode != http.StatusOK && (resp.StatusCode != http.StatusPartialContent || r.rangeHeader() == "") {
		refused := &Error{Op: r.String(), StatusCode: resp.StatusCode, RetryAfter: retryAfter(resp, time.Now())}
		return nil, errors.Join(refused, resp.Body.Close())
	}
	return resp, nil
}

// send returns a response of any status. Closing its body calls release. end is the time at which the header of a blob, or
// the content of another response, must be complete.
func (c *Client) send(ctx context.Context, r request, end time.Time, release func()) (*http.Response, error) {
	start := time.Now()
	limited, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(min(c.headerTimeout, time.Until(end)), func() { cancel(errHeaderTimeout) })
	resp, err := c.authenticated(limited, r)
	if !timer.Stop() && err == nil {
		err = errors.Join(errHeaderTimeout, resp.Body.Close())
	}
	if err != nil {
		err = classify(limited, r.String(), err)
		cancel(nil)
		status := 0
		if refused, ok := errors.AsType[*Error](err); ok {
			status = refused.StatusCode
		}
		c.metrics.observe(start, status)
		if ctx.Err() == nil {
			c.watcher.failed(err)
		}
		return nil, err
	}
	c.metrics.observe(start, resp.StatusCode)
	c.watcher.answered(resp)
	stopTimer := func() bool { return true }
	if r.kind != "blobs" {
		stopTimer = time.AfterFunc(min(c.answerTimeout, time.Until(end)), func() { cancel(errAnswerTimeout) }).Stop
	}
	resp.Body = &body{
		ReadCloser: resp.Body,
		ctx:        limited,
		cancel:     cancel,
		idle:       c.idleTimeout,
		op:         r.String(),
		received:   c.metrics.received,
		release: func() {
			stopTimer()
			release()
		},
	}
	return resp, nil
}

// authorization returns the authorization of a request and its repetitions. A repetition responds to the challenges of the
// earlier ones: an upstream that fails often would otherwise fail after each challenge.
func (c *Client) authorization(r request) *auth.Request {
	return c.auth.NewRequest(path.Join(c.prefix, r.repository))
}

// authenticated sends the request until its authorization is accepted, or rejected finally. It returns the last response.
func (c *Client) authenticated(ctx context.Context, r request) (*http.Response, error) {
	authorization := r.authorization
	if authorization == nil {
		authorization = c.authorization(r)
	}
	authorization.Begin()
	client := c.client(authorization.Authorize)
	for {
		req, err := c.newRequest(ctx, r)
		if err != nil {
			return nil, err
		}
		if err := authorization.Authorize(req); err != nil {
			return nil, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		if !authorization.Repeat(resp) {
			return resp, nil
		}
		if err := resp.Body.Close(); err != nil {
			return nil, err
		}
	}
}

// newRequest returns the request without authorization.
func (c *Client) newRequest(ctx context.Context, r request) (*http.Request, error) {
	u := c.remote.JoinPath("v2", c.prefix, r.repository, r.kind, r.reference)
	u.RawQuery = r.query
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	switch r.kind {
	case "manifests":
		req.Header.Set("Accept", strings.Join(oci.ManifestMediaTypes(), ", ")+", */*;q=0.5")
	case "referrers":
		req.Header.Set("Accept", oci.MediaTypeIndex)
	}
	if span := r.rangeHeader(); span != "" {
		req.Header.Set("Range", span)
		if r.ifRange != "" {
			req.Header.Set("If-Range", r.ifRange)
		}
	}
	return req, nil
}

// client returns a client that follows redirects as containerd does: authorize sets the authorization for the target of
// each redirect. Without authorize, no authorization is sent to the target.
func (c *Client) client(authorize func(*http.Request) error) *http.Client {
	return &http.Client{Transport: c.responses, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if len(via) >= maxRedirects {
			return fmt.Errorf("redirected more than %d times", maxRedirects)
		}
		// The URL of the previous request can contain a signature.
		req.Header.Del("Referer")
		req.Header.Del("Authorization")
		if authorize == nil {
			return nil
		}
		return authorize(req)
	}}
}
