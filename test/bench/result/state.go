// SPDX-License-Identifier: Apache-2.0

package result

// States of the cache and the node during a pull. They are the engines of the scenario stale, in addition to Direct.
const (
	// Cold and Warm: the cache is healthy and contains none, or all, of the content of the image.
	Cold = "cold"
	Warm = "warm"
	// StaleDocument is the problem that the usage document describes: hosts.toml, as written by gardener-node-agent,
	// contains an unassigned address, and no component of the node removes it.
	StaleDocument = "stale-document"
	// StaleDialTimeout is StaleDocument with the dial_timeout of the hosts.toml of this project.
	StaleDialTimeout = "stale-dial-timeout"
	// StaleUnitFirst is a pull that starts when the address becomes unassigned, on a node with the unit of this project.
	// StaleUnitLater is a pull after the unit has withdrawn the address.
	StaleUnitFirst = "stale-unit-first"
	StaleUnitLater = "stale-unit-later"
	// DeletedPinned is a pull that starts when a user deletes the Service; the controller recreates it with its pinned
	// ClusterIP.
	DeletedPinned = "deleted-pinned"
)
