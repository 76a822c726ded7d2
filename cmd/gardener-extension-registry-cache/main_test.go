// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"os/exec"
	"testing"
)

// Log collectors parse each line of the program as JSON. Therefore no package may print text while it is initialised.
// The test runs its own executable, which contains the packages of the program, and lists no tests.
func TestNoPackagePrintsWhenTheProgramStarts(t *testing.T) {
	t.Parallel()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), executable, "-test.list=^$")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("starting the program: %v\n%s", err, &stderr)
	}
	if stderr.Len() > 0 {
		t.Errorf("packages printed to standard error:\n%s", &stderr)
	}
}
