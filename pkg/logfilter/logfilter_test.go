// SPDX-License-Identifier: Apache-2.0

package logfilter

import (
	"bytes"
	"log"
	"testing"
)

func TestFilterRemovesOnlyTheUnwantedLine(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	logger := log.New(filter{&out}, "", 0)
	logger.Print("INFO: metrics: disable exposing PSI metrics because of failed init: no such file")
	logger.Print("ERROR: metrics: cannot open /proc/self/stat")
	if got, want := out.String(), "ERROR: metrics: cannot open /proc/self/stat\n"; got != want {
		t.Errorf("the filter passed on %q, want %q", got, want)
	}
}
