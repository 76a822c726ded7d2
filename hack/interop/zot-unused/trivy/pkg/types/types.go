// SPDX-License-Identifier: Apache-2.0

// Package types is empty, see hack/interop/zot/go.mod.
package types
