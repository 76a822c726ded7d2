// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"
)

const (
	// failurePause and limitPause are the times before a request is repeated after an error of the server, and after 429.
	failurePause, limitPause = 100 * time.Millisecond, 500 * time.Millisecond
	// repeatBudget is the time after which a failed request is not repeated: the client must get an answer in time, and an
	// upstream that fails slowly is overloaded.
	repeatBudget = 5 * time.Second
)

// twice sends a request, and once more if the failure is likely to be temporary. containerd 2 repeats a request to the last
// host once after 500, 503 and 504, containerd 1.7 up to five times after 408 and 429 (core/remotes/docker/resolver.go).
// It repeats none of the errors that the cache returns instead.
func twice[T any](ctx context.Context, send func() (T, error)) (T, error) {
	began := time.Now()
	result, err := send()
	pause, repeat := repeatAfter(err, time.Since(began))
	if !repeat {
		return result, err
	}
	select {
	case <-time.After(pause):
		return send()
	case <-ctx.Done():
		return result, err
	}
}

// repeatAfter returns whether a request that failed is repeated, and the pause before. An upstream that states a time in
// Retry-After is not requested earlier.
func repeatAfter(err error, passed time.Duration) (pause time.Duration, repeat bool) {
	failed, ok := errors.AsType[*Error](err)
	if !ok || passed > repeatBudget || failed.RetryAfter > 0 {
		return 0, false
	}
	switch failed.StatusCode {
	case 0: // the body broke off
		return 0, errors.Is(failed.Err, io.ErrUnexpectedEOF)
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return failurePause, true
	case http.StatusTooManyRequests:
		return limitPause, true
	}
	return 0, false
}
