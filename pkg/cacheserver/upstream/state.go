// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// The values of State.Reachable.
const (
	ReachableYes     = "yes"
	ReachableNo      = "no"
	ReachableUnknown = "unknown"
)

// The values of State.Reason.
const (
	// ReasonAnswers (yes): the upstream gave a usable answer, if only that it does not have something.
	ReasonAnswers = "Answers"
	// ReasonUnreachable (no): no answer, or none in time.
	ReasonUnreachable = "Unreachable"
	// ReasonCertificateNotTrusted (no): its certificate is not of a trusted authority, for another host, or expired.
	ReasonCertificateNotTrusted = "CertificateNotTrusted"
	// ReasonUnauthorized (no): it does not accept the credentials, or wants some and there are none. That an image is not
	// shown to a user who is known is no such case.
	ReasonUnauthorized = "Unauthorized"
	// ReasonRateLimited (no): it asks for fewer requests.
	ReasonRateLimited = "RateLimited"
	// ReasonFailing (no): it answers with errors of its own, 5xx.
	ReasonFailing = "Failing"
	// ReasonNotAsked (unknown): nothing was asked yet.
	ReasonNotAsked = "NotAsked"
)

const (
	// quietAfter is how old the last answer may be before State asks for itself. A request in ten minutes is no burden
	// for a registry, and GET /v2/ does not count against the limits of pulls.
	quietAfter = 10 * time.Minute
	// failingAfter is the same while the upstream is not reachable, so that its recovery is seen without anybody's pull.
	failingAfter = time.Minute
	// maxStateMessage is in bytes.
	maxStateMessage = 500
)

// State is what the last request to the upstream has shown.
type State struct {
	// Reachable is one of ReachableYes, ReachableNo and ReachableUnknown.
	Reachable string `json:"reachable"`
	// Reason is one of the constants above.
	Reason string `json:"reason"`
	// Message says it in words, of at most 500 bytes and without credentials and query strings. It names no image.
	Message string `json:"message"`
	// Since is when Reachable and Reason became what they are, LastRequest when the last request ended. Both are zero
	// before the first.
	Since       time.Time `json:"since,omitzero"`
	LastRequest time.Time `json:"lastRequest,omitzero"`
}

// watcher keeps the State. Its methods are safe for concurrent use.
type watcher struct {
	// credentials tells whether the client has some.
	credentials bool

	mu    sync.Mutex // guards state
	state State
	// asking has room for the one who asks the upstream.
	asking chan struct{}
}

func newWatcher(credentials bool) *watcher {
	return &watcher{
		credentials: credentials,
		state:       State{Reachable: ReachableUnknown, Reason: ReasonNotAsked, Message: "nothing was asked yet"},
		asking:      make(chan struct{}, 1),
	}
}

func (w *watcher) current() State {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

func (w *watcher) set(reachable, reason, message string) {
	if len(message) > maxStateMessage {
		message = strings.ToValidUTF8(message[:maxStateMessage-len("…")], "") + "…"
	}
	now := time.Now().UTC()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state.Reachable != reachable || w.state.Reason != reason {
		w.state.Since = now
	}
	w.state.Reachable, w.state.Reason, w.state.Message, w.state.LastRequest = reachable, reason, message, now
}

// answered notes an answer with a status, authentication included.
func (w *watcher) answered(resp *http.Response) {
	text := fmt.Sprintf("the upstream answered %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	switch {
	case resp.StatusCode == http.StatusTooManyRequests:
		w.set(ReachableNo, ReasonRateLimited, text)
	case resp.StatusCode >= http.StatusInternalServerError:
		w.set(ReachableNo, ReasonFailing, text)
	// To a token, which the upstream itself has given, 401 means that its owner may not see the image, or that there is none
	// of that name.
	case resp.StatusCode == http.StatusUnauthorized && hasScheme(resp.Header, "basic") && !hasScheme(resp.Header, "bearer"):
		w.unauthorized(text)
	default:
		w.set(ReachableYes, ReasonAnswers, "the upstream answers")
	}
}

// unauthorized notes that the upstream has answered text to the credentials, or to their absence.
func (w *watcher) unauthorized(text string) {
	if w.credentials {
		w.set(ReachableNo, ReasonUnauthorized, text+" to the credentials")
	} else {
		w.set(ReachableNo, ReasonUnauthorized, text+", and there are no credentials")
	}
}

func hasScheme(header http.Header, scheme string) bool {
	for _, challenge := range header.Values("WWW-Authenticate") {
		if name, _, _ := strings.Cut(challenge, " "); strings.EqualFold(name, scheme) {
			return true
		}
	}
	return false
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
		w.set(ReachableYes, ReasonAnswers, "the upstream answers")
	case failure.RateLimited():
		w.set(ReachableNo, ReasonRateLimited, tokenServerText(failure))
	case failure.StatusCode != 0:
		w.set(ReachableNo, ReasonFailing, tokenServerText(failure))
	case isCertificate(failure.Err):
		w.set(ReachableNo, ReasonCertificateNotTrusted, failure.Err.Error())
	default:
		w.set(ReachableNo, ReasonUnreachable, failure.Err.Error())
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
func (c *Client) State(ctx context.Context) State {
	state := c.watcher.current()
	wait := quietAfter
	// A registry that wants to be left alone is.
	if state.Reachable == ReachableNo && state.Reason != ReasonRateLimited {
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
	resp, err := c.base(ctx)
	if err == nil {
		c.watcher.answered(resp)
		return c.watcher.current()
	}
	err = classify(ctx, "GET /v2/", err)
	// Without an image, it is the user who is not known.
	if refused, ok := errors.AsType[*Error](err); ok && refused.Denied() {
		c.watcher.unauthorized(tokenServerText(refused))
	} else {
		c.watcher.failed(err)
	}
	return c.watcher.current()
}

// base gets /v2/ with the credentials, if the upstream asks for them. The body of the answer is closed.
func (c *Client) base(ctx context.Context) (*http.Response, error) {
	resp, err := c.getBase(ctx, "")
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	challenge, err := transport.Ping(ctx, c.auth.registry, answered{resp})
	if err != nil {
		// None that is understood; the answer is all there is.
		return resp, nil
	}
	switch strings.ToLower(challenge.Scheme) {
	case "basic":
		authorization, err := c.auth.basic()
		if err != nil || authorization == "" {
			return resp, err
		}
		return c.getBase(ctx, authorization)
	case "bearer":
		// Without a scope: whether the user is known, not what it may do.
		if _, err := c.auth.exchange(ctx, challenge, ""); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

func (c *Client) getBase(ctx context.Context, authorization string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.remote.JoinPath("v2").String()+"/", nil)
	if err != nil {
		return nil, err
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	start := time.Now()
	resp, err := c.http.Do(req)
	if err != nil {
		c.metrics.observe(start, 0)
		return nil, err
	}
	c.metrics.observe(start, resp.StatusCode)
	if err := discard(resp.Body); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	return resp, nil
}
