// Package shoot does the gardenlet's part: it takes a Shoot manifest through the gardenlet's order of steps in a
// testbed cluster, which is garden, seed and shoot at once, and reports like a gardenlet.
//
// What a gardenlet does for control planes, machines and DNS has no counterpart here: kind did that. What an extension
// sees is the same: namespace, Cluster, kubeconfig of the Shoot, Extension, OperatingSystemConfig, and nodes that apply
// it by gardener-node-agent. Steps and their order are those of pkg/gardenlet/controller/shoot/shoot in Gardener
// v1.147.
package shoot
