// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// SetDefaults fills in what is not set. Resources stay as they are, because what they are set to depends on the engine.
func SetDefaults(configuration *ControllerConfiguration) {
	if configuration.Engine == "" {
		configuration.Engine = RegistryCache
	}
	if configuration.Readiness.Interval == nil {
		configuration.Readiness.Interval = &metav1.Duration{Duration: 5 * time.Minute}
	}
	if configuration.Readiness.UnreadyInterval == nil {
		configuration.Readiness.UnreadyInterval = &metav1.Duration{Duration: min(30*time.Second, configuration.Readiness.Interval.Duration)}
	}
}
