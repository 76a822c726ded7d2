// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// runMain makes this test binary run the command instead of the tests.
const runMain = "TESTBED_TEST_RUN_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(runMain) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// The test binary links the same packages as bin/testbed, so that their initialisers print the same lines.
func TestHelpPrintsNothingElse(t *testing.T) {
	t.Parallel()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), executable, "--help")
	cmd.Env = append(os.Environ(), runMain+"=1")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("testbed --help: %v\n%s", err, &stderr)
	}
	if stderr.Len() > 0 {
		t.Errorf("testbed --help printed to standard error:\n%s", &stderr)
	}
	if want := command().Short; !strings.HasPrefix(stdout.String(), want) {
		t.Errorf("testbed --help printed\n%s\nwant output that starts with %q", &stdout, want)
	}
	if strings.Contains(stdout.String(), "\x1b") {
		t.Errorf("testbed --help printed colour codes although its output is not a terminal:\n%q", &stdout)
	}
}
