// SPDX-License-Identifier: Apache-2.0

package pullthrough

import (
	"errors"

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

// isBreak reports whether the connection to the upstream was interrupted, so that an immediate retry may succeed. A retry
// is useless after a timeout, a rejection and an error of the queue.
func isBreak(err error) bool {
	failed, ok := errors.AsType[*upstream.Error](err)
	return ok && failed.StatusCode == 0 && !failed.Timeout() && !failed.Busy()
}
