// SPDX-License-Identifier: Apache-2.0

// Package operation is empty, see hack/interop/zot/go.mod.
package operation
