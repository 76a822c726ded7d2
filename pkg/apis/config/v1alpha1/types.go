// Package v1alpha1 is the configuration file of the extension's controller, which the operator of the landscape writes.
package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

const (
	// APIVersion is the apiVersion of every object of this package.
	APIVersion = "config.registry.extensions.gardener.cloud/v1alpha1"
	// Kind is the kind of ControllerConfiguration.
	Kind = "ControllerConfiguration"
)

// ControllerConfiguration holds for the caches of all Shoots.
type ControllerConfiguration struct {
	metav1.TypeMeta `json:",inline"`

	// CABundle are roots in PEM, one certificate after the other, which every cache trusts for its upstream beside the
	// public ones: for landscapes whose registries, or whose way to them, have a certificate authority of their own.
	// Blank means none.
	// +optional
	CABundle string `json:"caBundle,omitempty"`
}
