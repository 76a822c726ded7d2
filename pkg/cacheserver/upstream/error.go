// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream/auth"
)

const (
	// maxRetryAfter limits the delay that an upstream can request.
	maxRetryAfter = 5 * time.Minute
	// absurdRetryAfter is a value that is no delay, but for example a Unix time.
	absurdRetryAfter = 24 * time.Hour
)

var (
	errHeaderTimeout = errors.New("no answer within the time for headers")
	errIdleTimeout   = errors.New("no bytes within the idle time")
	errAnswerTimeout = errors.New("not all of the answer within the time for it")
)

// ErrBusy is the cause of an Error if the request was not sent, see Options.QueueTimeout.
var ErrBusy = errors.New("not sent, because too many requests to the upstream are under way")

// Error is a request to the upstream without usable content. Its text contains no query strings and no credentials.
type Error struct {
	// Op names the request: "GET library/alpine/manifests/latest".
	Op string
	// StatusCode is the status of the response, 0 if there was no usable response.
	StatusCode int
	// Err is the reason if StatusCode is 0.
	Err error
	// RetryAfter is the delay that the upstream requests, at most 5 min, or 0.
	RetryAfter time.Duration
}

func (e *Error) Error() string {
	if e.StatusCode != 0 {
		return fmt.Sprintf("%s: upstream answered %d %s", e.Op, e.StatusCode, http.StatusText(e.StatusCode))
	}
	return fmt.Sprintf("%s: %v", e.Op, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// NotFound reports that the upstream does not have the content.
func (e *Error) NotFound() bool { return e.StatusCode == http.StatusNotFound }

// Denied reports that the upstream does not serve the content to the user of the credentials.
func (e *Error) Denied() bool {
	return e.StatusCode == http.StatusUnauthorized || e.StatusCode == http.StatusForbidden
}

// RefusesRange reports that the upstream does not serve the requested range, although it may state that it supports ranges.
func (e *Error) RefusesRange() bool {
	return e.StatusCode == http.StatusRequestedRangeNotSatisfiable || errors.Is(e.Err, ErrRange)
}

// RateLimited reports that the upstream limits the rate of requests.
func (e *Error) RateLimited() bool { return e.StatusCode == http.StatusTooManyRequests }

// Timeout reports that the upstream did not respond in time.
func (e *Error) Timeout() bool {
	if isTimeout(e.Err) || e.StatusCode == http.StatusRequestTimeout {
		return true
	}
	slow, ok := errors.AsType[net.Error](e.Err)
	return ok && slow.Timeout()
}

func isTimeout(err error) bool {
	return errors.Is(err, errHeaderTimeout) || errors.Is(err, errIdleTimeout) || errors.Is(err, errAnswerTimeout) || errors.Is(err, auth.ErrTimeout)
}

// Busy reports that the request was not sent, because too many requests are in progress.
func (e *Error) Busy() bool { return errors.Is(e.Err, ErrBusy) }

// Temporary reports that the cause is the state of the upstream instead of the requested content: it is unreachable, did
// not respond in time, limits the rate of requests, or failed.
func (e *Error) Temporary() bool {
	return e.StatusCode == 0 || e.Timeout() || e.RateLimited() || e.StatusCode >= http.StatusInternalServerError
}

// retryAfter returns the delay in the header Retry-After (RFC 9110, section 10.2.3): a number of seconds, or a date. It
// returns 0 for a status other than 429 and 503, and for invalid values.
func retryAfter(resp *http.Response, now time.Time) time.Duration {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return 0
	}
	value := strings.TrimSpace(resp.Header.Get("Retry-After"))
	var wait time.Duration
	if seconds, err := strconv.ParseUint(value, 10, 32); err == nil {
		wait = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		wait = at.Sub(now)
	}
	if wait <= 0 || wait > absurdRetryAfter {
		return 0
	}
	return min(wait, maxRetryAfter)
}

// tokenServerError converts the error of a token request. Only a denial and a temporary failure of the token server are
// reported with its status: its 404, for example, is no information about the content.
func tokenServerError(failed *auth.TokenError) *Error {
	op := "getting a token"
	if failed.Scopes != "" {
		op += " for " + failed.Scopes
	}
	e := &Error{Op: op, StatusCode: failed.StatusCode, Err: failed.Err}
	if e.StatusCode != 0 && !e.Denied() && !e.Temporary() {
		return &Error{Op: op, Err: fmt.Errorf("the token server answered %d %s", failed.StatusCode, http.StatusText(failed.StatusCode))}
	}
	return e
}

// classify converts err to an *Error, unless the context of the caller has ended.
func classify(ctx context.Context, op string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		if !isTimeout(cause) {
			return fmt.Errorf("%s: %w", op, cause)
		}
		err = cause
	}
	if known, ok := errors.AsType[*Error](err); ok {
		return known
	}
	if failed, ok := errors.AsType[*auth.TokenError](err); ok {
		return tokenServerError(failed)
	}
	// The URL in the error can be the target of a redirect, with a signature in its query.
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err
	}
	return &Error{Op: op, Err: err}
}
