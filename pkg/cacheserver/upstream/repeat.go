// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"
)

// The numbers of repetitions are those of containerd (core/remotes/docker/resolver.go and httpreadseeker.go), which repeats
// none of the errors that the cache returns instead. Therefore the cache must not give up earlier.
const (
	// failureRepeats is the number of repetitions after an error of the server. containerd 2 repeats a request to the last
	// host after 500, 503 and 504.
	failureRepeats = 1
	// limitRepeats is the number of repetitions after 408 and 429. containerd 1.7 needs no pause for them, containerd 2 has
	// one repetition less.
	limitRepeats = 5
	// brokenRepeats is the number of repetitions in a row after a body that broke off without a new byte.
	brokenRepeats = 3

	// failurePause is the time before the repetition after an error of the server.
	failurePause = 100 * time.Millisecond
	// limitPause is the time before the first repetition after 408 and 429. The second pause has twice this time, and so on:
	// 1.5 s in all.
	limitPause = 100 * time.Millisecond
	// maxRepeatAfter is the longest Retry-After that the cache waits for. After a longer one, the client gets the error
	// and can use another host; the upstream is not requested earlier.
	maxRepeatAfter = time.Second
	// repeatBudget is the time after which a failed request is not repeated: the client must get an answer in time, and an
	// upstream that fails slowly is overloaded.
	repeatBudget = 5 * time.Second
)

// alternativeKey is the key of the context value of WithAlternative.
type alternativeKey struct{}

// WithAlternative returns a context for requests that are not repeated after a failure, because the caller does not depend
// on them: it can use an earlier answer of the upstream, or another transfer.
func WithAlternative(ctx context.Context) context.Context {
	return context.WithValue(ctx, alternativeKey{}, true)
}

// HasAlternative reports whether the context is one of WithAlternative.
func HasAlternative(ctx context.Context) bool { return ctx.Value(alternativeKey{}) != nil }

// repeat sends a request until it succeeds or its failure is unlikely to be temporary. progress, which can be nil, reports
// whether the last request received new bytes: then a body that broke off does not count, and only ctx limits the time.
func repeat[T any](ctx context.Context, send func() (T, error), progress func() bool) (T, error) {
	began := time.Now()
	for repetition := 1; ; repetition++ {
		result, err := send()
		late := time.Since(began) > repeatBudget
		if progress != nil && progress() {
			repetition, late = 0, false
		}
		pause, again := repeatAfter(err, repetition)
		if !again || late || HasAlternative(ctx) {
			return result, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return result, err
		}
	}
}

// repeatAfter returns whether a failed request is repeated, and the pause before. repetition is the number of this
// repetition in a row, from 1 on.
func repeatAfter(err error, repetition int) (pause time.Duration, again bool) {
	failed, ok := errors.AsType[*Error](err)
	if !ok {
		return 0, false
	}
	var limit int
	switch failed.StatusCode {
	case 0:
		return 0, errors.Is(failed.Err, io.ErrUnexpectedEOF) && repetition <= brokenRepeats
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		pause, limit = failurePause, failureRepeats
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		pause, limit = time.Duration(repetition)*limitPause, limitRepeats
	}
	return max(pause, failed.RetryAfter), repetition <= limit && failed.RetryAfter <= maxRepeatAfter
}
