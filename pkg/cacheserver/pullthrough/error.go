// SPDX-License-Identifier: Apache-2.0

package pullthrough

import (
	"errors"
	"net/http"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

var errClosed = errors.New("the cache is shutting down")

// Reason says why there is no content.
type Reason int

// Reasons.
const (
	// Unavailable: the upstream was not reached, failed, or sent what cannot be used.
	Unavailable Reason = iota
	// NotFound: the upstream does not have it.
	NotFound
	// Denied: the upstream does not show it to the cache.
	Denied
	// RateLimited: the upstream asks for fewer requests.
	RateLimited
	// TimedOut: the upstream was silent for too long.
	TimedOut
	// Busy: too many requests to the upstream are under way.
	Busy
)

// Error is a request that cannot be answered with content.
type Error struct {
	Reason Reason
	// Err is the cause. Its text has no credentials.
	Err error
}

func (e *Error) Error() string { return e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// explain makes an *Error of err.
func explain(err error) error {
	if known, ok := errors.AsType[*Error](err); ok {
		return known
	}
	failed, ok := errors.AsType[*upstream.Error](err)
	switch {
	case !ok:
		return &Error{Unavailable, err}
	case failed.NotFound():
		return &Error{NotFound, err}
	case failed.Denied():
		return &Error{Denied, err}
	case failed.RateLimited():
		return &Error{RateLimited, err}
	case failed.Busy():
		return &Error{Busy, err}
	case failed.Timeout():
		return &Error{TimedOut, err}
	}
	return &Error{Unavailable, err}
}

func isNotFound(err error) bool {
	failed, ok := errors.AsType[*upstream.Error](err)
	return ok && failed.NotFound()
}

func isTemporary(err error) bool {
	failed, ok := errors.AsType[*upstream.Error](err)
	return ok && failed.Temporary()
}

// retryAfter returns how long the upstream wants to be left alone, 0 where it did not say.
func retryAfter(err error) time.Duration {
	failed, ok := errors.AsType[*upstream.Error](err)
	if !ok {
		return 0
	}
	return failed.RetryAfter
}

// isUnsupported says that the upstream does not know the method.
func isUnsupported(err error) bool {
	failed, ok := errors.AsType[*upstream.Error](err)
	return ok && failed.StatusCode == http.StatusMethodNotAllowed
}

// lacksReferrers says that the upstream does not have the referrers API, by the status that registries without it are
// known to answer with, or by something else than an index.
func lacksReferrers(err error) bool {
	failed, ok := errors.AsType[*upstream.Error](err)
	if !ok {
		return false
	}
	switch failed.StatusCode {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented:
		return true
	}
	return errors.Is(err, upstream.ErrNoIndex)
}

// isBreak says that the connection to the upstream broke, so that asking again at once may help. That is not so where
// the upstream was busy or silent, or refused.
func isBreak(err error) bool {
	failed, ok := errors.AsType[*upstream.Error](err)
	return ok && failed.StatusCode == 0 && !failed.Timeout() && !failed.Busy()
}
