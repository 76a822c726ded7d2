// SPDX-License-Identifier: Apache-2.0

// Package gardenlet does the gardenlet's part in a testbed cluster, which is garden, seed and shoot at once: it watches
// the Shoots in Gardener's API, takes each through the gardenlet's order of steps, and reports in its status like a
// gardenlet.
//
// What a gardenlet does for control planes, machines and DNS has no counterpart here: kind did that. What an extension
// sees is the same: namespace, Cluster, kubeconfig of the Shoot, Extension, OperatingSystemConfig, and nodes that apply
// it by gardener-node-agent. Steps and their order are those of pkg/gardenlet/controller/shoot/shoot in Gardener
// v1.147, conditions those of pkg/gardenlet/controller/shoot/care.
//
// The nodes belong to one Shoot at a time; they stay while it is hibernated, and with what they have applied. Beyond a
// change of the Shoot, an error and the annotation gardener.cloud/operation nothing starts an operation: there is no
// maintenance time window.
package gardenlet
