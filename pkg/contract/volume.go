// SPDX-License-Identifier: Apache-2.0

package contract

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

const (
	// VolumeStateVersion is the version of the format of VolumeState. A change that a decoder of an older version would
	// misinterpret increases it; additional fields do not.
	VolumeStateVersion = 1
	// MaxVolumeState is the maximum size of an encoded VolumeState, in bytes. See MaxUpstreamState.
	MaxVolumeState = 64 << 10
	// MaxVolumeMessage is the maximum length of VolumeState.Message, in bytes.
	MaxVolumeMessage = MaxUpstreamMessage
	// MaxVolumeProblems is the maximum number of elements of VolumeState.Problems.
	MaxVolumeProblems = 21
)

// VolumeCondition is the state of the volume of a cache.
type VolumeCondition string

// The values of VolumeCondition.
const (
	VolumeOK       VolumeCondition = "ok"
	VolumeFull     VolumeCondition = "full"
	VolumeReadOnly VolumeCondition = "read-only"
	VolumeError    VolumeCondition = "error"
	VolumeHung     VolumeCondition = "hung"
)

// VolumeReason is the cause of a VolumeCondition, in the format of the reason of a Kubernetes condition.
type VolumeReason string

// The values of VolumeReason. Each implies one VolumeCondition.
const (
	// ReasonUsable (ok): reads and writes succeed.
	ReasonUsable VolumeReason = "Usable"
	// ReasonVolumeFull (full): a write failed because space, inodes or a quota is exhausted. Stored content is served,
	// other content is passed through.
	ReasonVolumeFull VolumeReason = "VolumeFull"
	// ReasonNotWritable (read-only): the file system is mounted read-only, or its owner, permissions or files prevent
	// writes. Stored content is served, other content is passed through.
	ReasonNotWritable VolumeReason = "NotWritable"
	// ReasonIOError (error): a call failed with an error such as EIO or ESTALE. Readable content is served, other content
	// is passed through.
	ReasonIOError VolumeReason = "IOError"
	// ReasonNoResponse (hung): calls do not return. The server answers BasePath and ReadyPath with 503 and passes all
	// content through.
	ReasonNoResponse VolumeReason = "NoResponse"
)

var volumeConditions = map[VolumeReason]VolumeCondition{
	ReasonUsable:      VolumeOK,
	ReasonVolumeFull:  VolumeFull,
	ReasonNotWritable: VolumeReadOnly,
	ReasonIOError:     VolumeError,
	ReasonNoResponse:  VolumeHung,
}

// VolumeState is the response of the cache server on VolumePath.
type VolumeState struct {
	// Version is VolumeStateVersion.
	Version int `json:"version"`
	// State is the value that Reason implies.
	State  VolumeCondition `json:"state"`
	Reason VolumeReason    `json:"reason"`
	// Message is human-readable: at most MaxVolumeMessage bytes. It contains paths on the volume. Empty if State is ok.
	Message string `json:"message"`
	// Since is the time of the last change of State.
	Since time.Time `json:"since"`
	// Problems are files and directories that the cache cannot use, for any State, sorted by path. At most
	// MaxVolumeProblems; the last one can state the number of further ones. The cache continues without them.
	Problems []VolumeProblem `json:"problems,omitempty"`
}

// VolumeProblem is a file or directory that an operator has to repair or delete, for example one with a foreign owner.
type VolumeProblem struct {
	// Path is relative to the root of the volume; "." is the root.
	Path string `json:"path"`
	// Message is human-readable: at most MaxVolumeMessage bytes.
	Message string `json:"message"`
}

// NewVolumeState returns the state for a reason, which must be one of the constants. Messages that are too long and
// problems beyond the maximum are cut.
func NewVolumeState(reason VolumeReason, message string, since time.Time, problems []VolumeProblem) VolumeState {
	return VolumeState{
		Version: VolumeStateVersion, State: volumeConditions[reason], Reason: reason,
		Message: limitMessage(message), Since: since.UTC(), Problems: limitProblems(problems),
	}
}

// limitProblems returns a copy without the problems beyond the maximum and with limited texts.
func limitProblems(problems []VolumeProblem) []VolumeProblem {
	var limited []VolumeProblem
	for _, p := range problems[:min(len(problems), MaxVolumeProblems)] {
		limited = append(limited, VolumeProblem{limitMessage(p.Path), limitMessage(p.Message)})
	}
	return limited
}

// DecodeVolumeState decodes the response body of an untrusted server. It ignores unknown fields, and cuts messages that are
// too long and problems beyond the maximum. A body above MaxVolumeState, another version, an unknown reason, and a state
// that contradicts the reason are errors. Errors do not repeat the body.
func DecodeVolumeState(body []byte) (VolumeState, error) {
	if len(body) > MaxVolumeState {
		return VolumeState{}, fmt.Errorf("volume state: more than %d bytes", MaxVolumeState)
	}
	var state VolumeState
	if err := json.Unmarshal(body, &state); err != nil {
		return VolumeState{}, errors.New("volume state: must be a JSON object with version, state, reason, message and since")
	}
	if state.Version != VolumeStateVersion {
		return VolumeState{}, fmt.Errorf("volume state: version must be %d", VolumeStateVersion)
	}
	want, ok := volumeConditions[state.Reason]
	if !ok {
		return VolumeState{}, errors.New("volume state: unknown reason")
	}
	if state.State != want {
		return VolumeState{}, fmt.Errorf("volume state: state must be %q for reason %s", want, state.Reason)
	}
	state.Message, state.Problems = limitMessage(state.Message), limitProblems(state.Problems)
	return state, nil
}
