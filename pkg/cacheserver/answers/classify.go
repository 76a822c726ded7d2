// SPDX-License-Identifier: Apache-2.0

package answers

import (
	"errors"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

// Class is the meaning of an error of a request to the upstream.
type Class int

// Classes.
const (
	// Rejected means that the upstream rejects the request, for example because of its credentials. The error is the answer,
	// and the stored answer is deleted.
	Rejected Class = iota
	// Negative means that the upstream has no such content. The error is the answer and is stored.
	Negative
	// Temporary means that the upstream failed. A stored answer is used if it is recent enough.
	Temporary
)

// Classify returns the class of an error: Negative for 404, Temporary for connection errors, timeouts, 408, 429 and 5xx,
// otherwise Rejected. wait is the time until the upstream accepts the next request, at most 5 minutes; 0 if the upstream
// has not defined it.
func Classify(err error) (class Class, wait time.Duration) {
	failed, ok := errors.AsType[*upstream.Error](err)
	switch {
	case !ok:
		return Rejected, 0
	case failed.NotFound():
		return Negative, 0
	case failed.Temporary():
		return Temporary, failed.RetryAfter
	}
	return Rejected, 0
}
