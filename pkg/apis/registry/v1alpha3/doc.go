// SPDX-License-Identifier: Apache-2.0

// Package v1alpha3 is the version of the API registry.extensions.gardener.cloud that the controller works with: what a
// Shoot owner asks for (RegistryConfig), what the controller reports (RegistryStatus), and the names by which the
// objects of a cache are found in the Shoot.
//
// +kubebuilder:object:generate=true
// +groupName=registry.extensions.gardener.cloud
package v1alpha3
