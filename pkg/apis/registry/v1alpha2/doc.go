// SPDX-License-Identifier: Apache-2.0

// Package v1alpha2 is the second version of the API by which a Shoot owner asks for registry caches: kind RegistryConfig
// in spec.extensions[].providerConfig of a Shoot. The controller does not work with these types; package registry
// defaults them and converts them to v1alpha3.
//
// +kubebuilder:object:generate=true
// +groupName=registry.extensions.gardener.cloud
package v1alpha2
