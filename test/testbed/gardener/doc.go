// SPDX-License-Identifier: Apache-2.0

// Package gardener puts Gardener's own components into a testbed cluster, which is garden, seed and shoot at once: the
// CRDs, gardener-resource-manager, gardener-apiserver with what a Shoot refers to, and gardener-node-agent on every node.
// All of them come from the Go module github.com/gardener/gardener in the version of hack/kind/gardener/go.mod. The
// gardenlet alone is a stand-in, package gardenlet of this checkout: the real one would make control planes and machines.
package gardener
