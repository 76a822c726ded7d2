// SPDX-License-Identifier: Apache-2.0

package volume

import "slices"

// State is the state of a volume.
type State string

// States, in the order of their severity. A failed call replaces a state by a more severe one immediately. Only a probe
// replaces it by a less severe one.
const (
	// OK: reads and writes succeed.
	OK State = "ok"
	// Full: a write failed because space, inodes or a quota is exhausted.
	Full State = "full"
	// ReadOnly: the file system is mounted read-only, or its permissions prevent writes.
	ReadOnly State = "read-only"
	// Failed: a call failed with an error that concerns the volume, such as EIO or ESTALE.
	Failed State = "error"
	// Hung: a call or a probe has no result within its deadline. All calls fail with ErrHung.
	Hung State = "hung"
)

// States returns all states.
func States() []State { return []State{OK, Full, ReadOnly, Failed, Hung} }

// severity orders the states.
func (s State) severity() int { return slices.Index(States(), s) }
