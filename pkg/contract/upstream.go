// SPDX-License-Identifier: Apache-2.0

package contract

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	// MaxUpstreamState is the maximum size of an encoded UpstreamState, in bytes. The server stays far below it; the
	// controller reads no more, because a Shoot owner can replace the pod.
	MaxUpstreamState = 64 << 10
	// MaxUpstreamMessage is the maximum length of UpstreamState.Message, in bytes.
	MaxUpstreamMessage = 500
)

// Reachability reports whether the upstream of a cache is usable.
type Reachability string

// The values of Reachability.
const (
	ReachableYes     Reachability = "yes"
	ReachableNo      Reachability = "no"
	ReachableUnknown Reachability = "unknown"
)

// Reason is the cause of a Reachability, in the format of the reason of a Kubernetes condition.
type Reason string

// The values of Reason. Each implies one Reachability.
const (
	// ReasonAnswers (yes): the upstream returned a usable response, including "not found".
	ReasonAnswers Reason = "Answers"
	// ReasonUnreachable (no): no response, or none in time.
	ReasonUnreachable Reason = "Unreachable"
	// ReasonCertificateNotTrusted (no): its certificate is signed by an unknown authority, is valid for another host, or
	// has expired.
	ReasonCertificateNotTrusted Reason = "CertificateNotTrusted"
	// ReasonUnauthorized (no): it rejects the credentials, or requires credentials and the cache has none. A response
	// that denies a known user access to one image is ReasonAnswers.
	ReasonUnauthorized Reason = "Unauthorized"
	// ReasonRateLimited (no): it returned 429.
	ReasonRateLimited Reason = "RateLimited"
	// ReasonFailing (no): it returned 5xx.
	ReasonFailing Reason = "Failing"
	// ReasonNotAsked (unknown): no request was sent yet.
	ReasonNotAsked Reason = "NotAsked"
)

var reachable = map[Reason]Reachability{
	ReasonAnswers:               ReachableYes,
	ReasonUnreachable:           ReachableNo,
	ReasonCertificateNotTrusted: ReachableNo,
	ReasonUnauthorized:          ReachableNo,
	ReasonRateLimited:           ReachableNo,
	ReasonFailing:               ReachableNo,
	ReasonNotAsked:              ReachableUnknown,
}

// Reachable returns the Reachability that the reason implies. ok is false if the reason is not one of the constants.
func (r Reason) Reachable() (value Reachability, ok bool) {
	value, ok = reachable[r]
	return value, ok
}

// UpstreamState is the response of the cache server on UpstreamPath: the result of its last request to the upstream.
type UpstreamState struct {
	// Reachable is the value that Reason implies.
	Reachable Reachability `json:"reachable"`
	Reason    Reason       `json:"reason"`
	// Message is human-readable: at most MaxUpstreamMessage bytes, without credentials, query strings and names of images.
	Message string `json:"message"`
	// Since is the time of the last change of Reason; LastRequest is the end of the last request. Both are zero before
	// the first request.
	Since       time.Time `json:"since,omitzero"`
	LastRequest time.Time `json:"lastRequest,omitzero"`
}

// NewUpstreamState returns the state for a reason, which must be one of the constants. A message that is too long is
// cut.
func NewUpstreamState(reason Reason, message string) UpstreamState {
	return UpstreamState{Reachable: reachable[reason], Reason: reason, Message: limitMessage(message)}
}

// DecodeUpstreamState decodes the response body of an untrusted server. It ignores unknown fields, which a newer server
// may send, and cuts a message that is too long. A body above MaxUpstreamState, an unknown reason, and a reachability
// that contradicts the reason are errors. Errors do not repeat the body.
func DecodeUpstreamState(body []byte) (UpstreamState, error) {
	if len(body) > MaxUpstreamState {
		return UpstreamState{}, fmt.Errorf("upstream state: more than %d bytes", MaxUpstreamState)
	}
	var state UpstreamState
	if err := json.Unmarshal(body, &state); err != nil {
		return UpstreamState{}, errors.New("upstream state: must be a JSON object with reachable, reason and message")
	}
	want, ok := state.Reason.Reachable()
	if !ok {
		return UpstreamState{}, errors.New("upstream state: unknown reason")
	}
	if state.Reachable != want {
		return UpstreamState{}, fmt.Errorf("upstream state: reachable must be %q for reason %s", want, state.Reason)
	}
	state.Message = limitMessage(state.Message)
	return state, nil
}

// limitMessage returns valid UTF-8 of at most MaxUpstreamMessage bytes. A cut message ends in "…".
func limitMessage(message string) string {
	const mark, limit = "…", MaxUpstreamMessage
	message = strings.ToValidUTF8(message, "")
	if len(message) <= limit {
		return message
	}
	return strings.ToValidUTF8(message[:limit-len(mark)], "") + mark
}
