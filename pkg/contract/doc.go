// SPDX-License-Identifier: Apache-2.0

// Package contract defines the facts on which several programs of this module must agree: admission, controller and
// node configuration in Gardener, and the cache server in the Shoot.
//
// The rules are pure functions. Each Parse function returns the canonical value, or an error that states the rule and a
// remedy and never repeats a value that may contain a credential. The package imports nothing of this module and no
// Kubernetes package, so that every program can use it.
package contract
