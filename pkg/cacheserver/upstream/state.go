// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream/auth"
	"github.com/registry-cache/extension/pkg/contract"
)

const (
	// quietAfter is how old the last answer may be before State asks for itself. A request in ten minutes is no burden
	// for a registry, and GET /v2/ does not count against the limits of pulls.
	quietAfter = 10 * time.Minute
	// failingAfter is the same while the upstream is not reachable, so that its recovery is seen without anybody's pull.
	failingAfter = time.Minute
)

// watcher keeps the state of the upstream. Its methods are safe for concurrent use.
type watcher struct {
	// credentials tells whether the client has some.
	credentials bool

	mu    sync.Mutex // guards state
	state contract.UpstreamState
	// asking has room for the one who asks the upstream.
	asking chan struct{}
}

func newWatcher(credentials bool) *watcher {
	return &watcher{
		credentials: credentials,
		state:       contract.NewUpstreamState(contract.ReasonNotAsked, "nothing was asked yet"),
		asking:      make(chan struct{}, 1),
	}
}

func (w *watcher) current() contract.UpstreamState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

func (w *watcher) set(reason contract.Reason, message string) {
	next := contract.NewUpstreamState(reason, message)
	now := time.Now().UTC()
	w.mu.Lock()
	defer w.mu.Unlock()
	next.Since, next.LastRequest = w.state.Since, now
	if w.state.Reason != reason {
		next.Since = now
	}
	w.state = next
}

// answered notes an answer with a status, authentication included.
func (w *watcher) answered(resp *http.Response) {
	text := fmt.Sprintf("the upstream answered %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	switch {
	case resp.StatusCode == http.StatusTooManyRequests:
		w.set(contract.ReasonRateLimited, text)
	case resp.StatusCode >= http.StatusInternalServerError:
		w.set(contract.ReasonFailing, text)
	// To a token, which the upstream itself has given, 401 means that its owner may not see the image, or that there is none
	// of that name.
	case resp.StatusCode == http.StatusUnauthorized && hasScheme(resp.Header, "basic") && !hasScheme(resp.Header, "bearer"):
		w.unauthorized(text)
	default:
		w.set(contract.ReasonAnswers, "the upstream answers")
	}
}

// unauthorized notes that the upstream has answered text to the credentials, or to their absence.
func (w *watcher) unauthorized(text string) {
	if w.credentials {
		w.set(contract.ReasonUnauthorized, text+" to the credentials")
	} else {
		w.set(contract.ReasonUnauthorized, text+", and there are no credentials")
	}
}

func hasScheme(header http.Header, scheme string) bool {
	return slices.ContainsFunc(auth.ParseChallenges(header), func(c auth.Challenge) bool { return c.Scheme == scheme })
}

// failed notes an error of a request. Those that say nothing about the upstream do not count: the request was not sent,
// or nobody wanted the answer any more.
func (w *watcher) failed(err error) {
	failure, ok := errors.AsType[*Error](err)
	if !ok || failure.Busy() {
		return
	}
	switch {
	case failure.StatusCode == http.StatusUnauthorized && w.credentials:
		w.unauthorized(tokenServerText(failure))
	// Nobody in particular may not see the image, or somebody who is known.
	case failure.Denied():
		w.set(contract.ReasonAnswers, "the upstream answers")
	case failure.RateLimited():
		w.set(contract.ReasonRateLimited, tokenServerText(failure))
	case failure.StatusCode != 0:
		w.set(contract.ReasonFailing, tokenServerText(failure))
	case isCertificate(failure.Err):
		w.set(contract.ReasonCertificateNotTrusted, failure.Err.Error())
	default:
		w.set(contract.ReasonUnreachable, failure.Err.Error())
	}
}

// tokenServerText is about an error with a status: those of the upstream itself are answers and no errors.
func tokenServerText(failure *Error) string {
	return fmt.Sprintf("the token server of the upstream answered %d %s", failure.StatusCode, http.StatusText(failure.StatusCode))
}

func isCertificate(err error) bool {
	_, ok := errors.AsType[*tls.CertificateVerificationError](err)
	return ok
}

// State returns what the requests of clients have shown about the upstream. If there were none for long, it asks the
// upstream for /v2/ itself, at most once in ten minutes, and once in a minute while the upstream is not reachable; of several
// callers one asks, and the others get what is known. ctx ends the asking.
func (c *Client) State(ctx context.Context) contract.UpstreamState {
	state := c.watcher.current()
	wait := quietAfter
	// A registry that wants to be left alone is.
	if state.Reachable == contract.ReachableNo && state.Reason != contract.ReasonRateLimited {
		wait = failingAfter
	}
	if !state.LastRequest.IsZero() && time.Since(state.LastRequest) < wait {
		return state
	}
	select {
	case c.watcher.asking <- struct{}{}:
		defer func() { <-c.watcher.asking }()
	default:
		return state
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.headerTimeout, errHeaderTimeout)
	defer cancel()
	resp, err := c.base(ctx) //nolint:bodyclose // base closes the body
	if err == nil {
		c.watcher.answered(resp)
		return c.watcher.current()
	}
	err = classify(ctx, "GET /v2/", err)
	refused, ok := errors.AsType[*Error](err)
	switch {
	case !ok || !refused.Denied():
		c.watcher.failed(err)
	case c.watcher.credentials:
		// The request names no image, so the denial concerns the credentials.
		c.watcher.unauthorized(tokenServerText(refused))
	default:
		// Some token servers, for example GitLab's, issue no anonymous token without a scope, although they issue tokens for
		// public images.
		c.watcher.set(contract.ReasonAnswers, "the upstream answers")
	}
	return c.watcher.current()
}

// base requests /v2/, with the credentials if the upstream sends a challenge. It returns the response of the upstream with
// a closed body, or the error of the token server.
func (c *Client) base(ctx context.Context) (*http.Response, error) {
	resp, err := c.getBase(ctx, "")
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	challenge, ok := c.auth.Choose(resp.Request.URL, resp.Header)
	if !ok {
		return resp, nil
	}
	// Without a scope, the token server checks the credentials only.
	authorization, err := c.auth.Respond(ctx, resp.Request.URL, challenge, "")
	if err != nil || !strings.HasPrefix(authorization, "Basic ") {
		return resp, err
	}
	return c.getBase(ctx, authorization)
}

// getBase sends one request for /v2/.
func (c *Client) getBase(ctx context.Context, authorization string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.remote.JoinPath("v2").String()+"/", nil)
	if err != nil {
		return nil, err
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	start := time.Now()
	resp, err := c.client(nil).Do(req)
	if err != nil {
		c.metrics.observe(start, 0)
		return nil, err
	}
	c.metrics.observe(start, resp.StatusCode)
	// The content of a successful response is not used.
	return resp, resp.Body.Close()
}
