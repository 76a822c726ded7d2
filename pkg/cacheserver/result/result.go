// SPDX-License-Identifier: Apache-2.0

// Package result defines the parts of an answer that every client of the cache sees: its origin and its error.
package result

import (
	"errors"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

// Outcome is the origin of a successful answer. The values appear in logs and as label values of metrics.
type Outcome string

// Outcomes.
const (
	// Hit is an answer from the cache. The digest of a tag, and a list, are at most as old as the revalidation period.
	Hit Outcome = "hit"
	// Miss is an answer from the upstream that the cache has stored.
	Miss Outcome = "miss"
	// Stale is the last valid answer about a tag or a list. The upstream failed to confirm it.
	Stale Outcome = "stale"
	// PassThrough is an answer from the upstream that the cache has not stored.
	PassThrough Outcome = "pass-through"
)

// Reason is the class of an error. Package httpapi maps it to a status code.
type Reason int

// Reasons.
const (
	// Unavailable means that the upstream was unreachable, failed, or sent an unusable response.
	Unavailable Reason = iota
	// NotFound means that the upstream does not have the requested content.
	NotFound
	// Denied means that the upstream rejected the credentials of the cache.
	Denied
	// RateLimited means that the upstream limits the number of requests.
	RateLimited
	// TimedOut means that the upstream exceeded a time limit.
	TimedOut
	// Busy means that too many requests to the upstream were in progress, or that stored content is still being verified.
	Busy
)

// Error is the error of a request without an answer.
type Error struct {
	Reason Reason
	// Err is the cause. Its text contains no credentials.
	Err error
}

// Error implements error.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Explain returns err as an *Error. The reason of an *upstream.Error depends on its status and cause, the reason of
// any other error is Unavailable. An *Error in the chain of err is returned unchanged. err must not be nil.
func Explain(err error) error {
	if explained, ok := errors.AsType[*Error](err); ok {
		return explained
	}
	return &Error{Reason: reasonOf(err), Err: err}
}

func reasonOf(err error) Reason {
	failed, ok := errors.AsType[*upstream.Error](err)
	switch {
	case !ok:
		return Unavailable
	case failed.NotFound():
		return NotFound
	case failed.Denied():
		return Denied
	case failed.RateLimited():
		return RateLimited
	case failed.Busy():
		return Busy
	case failed.Timeout():
		return TimedOut
	}
	return Unavailable
}
