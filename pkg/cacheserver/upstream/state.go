// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/registry-cache/extension/pkg/contract"
)

const (
	// quietAfter is the age of the last response after which State sends a request. One request in ten minutes is no load for
	// a registry, and GET /v2/ does not count towards limits of pulls.
	quietAfter = 10 * time.Minute
	// failingAfter is this age while the upstream is not usable, so that its recovery is detected without a pull.
	failingAfter = time.Minute
	// stateTimeout is the time for which State waits. The controller requests the states of all upstreams of a Shoot within
	// 12 s.
	stateTimeout = 5 * time.Second
)

// State returns the state of the upstream that requests of clients have shown. If there was no request for ten minutes, or
// for one minute while the upstream is not usable, it requests /v2/ and waits for at most stateTimeout for the result: a slow
// upstream has more time, and the next call returns the result. Concurrent calls send one request; the other calls return the
// previous state immediately. The request does not end with ctx.
func (c *Client) State(ctx context.Context) contract.UpstreamState {
	state := c.watcher.current()
	wait := quietAfter
	// A registry that limits the rate of requests gets no additional ones.
	if state.Reachable == contract.ReachableNo && state.Reason != contract.ReasonRateLimited {
		wait = failingAfter
	}
	if !state.LastRequest.IsZero() && time.Since(state.LastRequest) < wait {
		return state
	}
	select {
	case c.watcher.probing <- struct{}{}:
	default:
		return state
	}
	finished := make(chan struct{})
	if !c.work.Go(func(ctx context.Context) {
		defer close(finished)
		defer func() { <-c.watcher.probing }()
		c.probe(ctx)
	}) {
		<-c.watcher.probing
		return state
	}
	timer := time.NewTimer(stateTimeout)
	defer timer.Stop()
	select {
	case <-finished:
	case <-timer.C:
	case <-ctx.Done():
	}
	return c.watcher.current()
}

// probe requests /v2/ and stores the result as state.
func (c *Client) probe(ctx context.Context) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.headerTimeout, errHeaderTimeout)
	defer cancel()
	resp, err := c.base(ctx) //nolint:bodyclose // base closes the body
	if err == nil {
		c.watcher.answered(resp)
		return
	}
	err = classify(ctx, "GET /v2/", err)
	refused, ok := errors.AsType[*Error](err)
	switch {
	case !ok || !refused.Denied():
		c.watcher.failed(err)
	case c.watcher.credentials:
		// The request contains no image, so the denial concerns the credentials.
		c.watcher.unauthorized(tokenServerText(refused))
	default:
		// Some token servers, for example GitLab's, issue no anonymous token without a scope, although they issue tokens for
		// public images.
		c.watcher.set(contract.ReasonAnswers, "the upstream answers")
	}
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
