// Package gardener puts Gardener's own components into a testbed cluster, which is garden, seed and shoot at once: the
// CRDs, gardener-resource-manager, and gardener-node-agent on every node. All of them come from the Go module
// github.com/gardener/gardener in the version of hack/kind/gardener/go.mod.
//
// What a gardenlet would do with them is the business of package shoot.
package gardener
