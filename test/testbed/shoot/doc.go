// SPDX-License-Identifier: Apache-2.0

// Package shoot applies Shoots to a testbed cluster and deletes them, as their owner does with kubectl, and waits for
// what the gardenlet reports.
package shoot
