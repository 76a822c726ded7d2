// SPDX-License-Identifier: Apache-2.0

package upstream

// Hosts returns the host names that resolve to the upstream in a testbed.
func Hosts() []string {
	return []string{"registry-1.docker.io", "docker.io", "ghcr.io", "quay.io", "gcr.io", "eu.gcr.io", "us.gcr.io", "asia.gcr.io", "registry.k8s.io"}
}
