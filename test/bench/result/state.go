// SPDX-License-Identifier: Apache-2.0

package result

// The states of the world that a node pulls in; they are the engines of the scenario stale, beside Direct.
const (
	// Cold and Warm: the cache is healthy, and has nothing or all of the image.
	Cold = "cold"
	Warm = "warm"
	// StaleDocument is what the user's document describes: containerd knows an address that nobody has, in a hosts.toml as
	// gardener-node-agent writes it, and nothing on the node notices.
	StaleDocument = "stale-document"
	// StaleDialTimeout is the same with the dial_timeout of our hosts.toml.
	StaleDialTimeout = "stale-dial-timeout"
	// StaleUnitFirst is a pull that begins in the moment in which the address goes, with our unit on the node;
	// StaleUnitLater one after the unit has noticed.
	StaleUnitFirst = "stale-unit-first"
	StaleUnitLater = "stale-unit-later"
	// DeletedPinned is a pull that begins in the moment in which the Service is deleted by hand, and comes back.
	DeletedPinned = "deleted-pinned"
)
