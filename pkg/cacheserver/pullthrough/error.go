// SPDX-License-Identifier: Apache-2.0

package pullthrough

import (
	"errors"
	"net/http"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

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
