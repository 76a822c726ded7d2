// SPDX-License-Identifier: Apache-2.0

// Package artifact is empty, see hack/interop/zot/go.mod.
package artifact
