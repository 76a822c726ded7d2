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

// isBreak says that the connection to the upstream broke, so that asking again at once may help. That is not so where
// the upstream was busy or silent, or refused.
func isBreak(err error) bool {
	failed, ok := errors.AsType[*upstream.Error](err)
	return ok && failed.StatusCode == 0 && !failed.Timeout() && !failed.Busy()
}
