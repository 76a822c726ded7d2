// SPDX-License-Identifier: Apache-2.0

package gardenlet

import "time"

// Bounds of the waits. Each is what a gardenlet grants, or more than ten times what was measured.
const (
	// extensionTimeout is the gardenlet's (pkg/component/extensions/extension).
	extensionTimeout = 3 * time.Minute
	// failureGrace is how long an extension may report an error that could pass, the gardenlet's severe threshold.
	failureGrace = 30 * time.Second
	// managedResourceTimeout is the gardenlet's for system components.
	managedResourceTimeout = 2 * time.Minute
	// nodesTimeout is the gardenlet's 3 minutes; nodes do not delay themselves here. The node agent retries a failed
	// OperatingSystemConfig after up to 3 minutes of trying, which makes one retry possible.
	nodesTimeout = 4 * time.Minute
	// namespaceTimeout is for a namespace whose objects have no finalizers any more.
	namespaceTimeout = 2 * time.Minute
)
