// SPDX-License-Identifier: Apache-2.0

package csidriver

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestOneCallAtATimeWorksOnAVolume(t *testing.T) {
	t.Parallel()
	e := exclusive{held: map[string]bool{}}
	release, err := e.hold("a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.hold("a"); status.Code(err) != codes.Aborted {
		t.Errorf("second call on a held volume: %v, want code Aborted", err)
	}
	releaseOther, err := e.hold("b")
	if err != nil {
		t.Errorf("call on another volume: %v", err)
	}
	releaseOther()
	release()
	if _, err := e.hold("a"); err != nil {
		t.Errorf("call on a released volume: %v", err)
	}
}
