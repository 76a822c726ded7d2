// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// The tests of the OCI distribution specification that a registry without push can be asked, of the version that
// hack/conformance pins. They run twice: with an empty volume, and with the volume of the first run.
func TestConformance(t *testing.T) {
	t.Parallel()
	program := buildConformance(t)
	u := newOrigin(t, upstream.Options{})
	image := u.push(t, tag, 1)
	u.pushReferrer(t, image)
	index, err := images.Index(
		images.Spec{Seed: 2, LayerSizes: []int64{1000}, Architecture: "amd64"},
		images.Spec{Seed: 3, LayerSizes: []int64{2000}, Architecture: "arm64"})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Push(t.Context(), "docker.io/"+repository+":idx", index); err != nil {
		t.Fatal(err)
	}
	indexDigest, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	blobs, _ := layers(t, image)
	config, err := image.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	blobs = append(blobs, config.String())
	c := start(t, u.config(t), cacheserver.Options{})
	for _, run := range []string{"cold", "warm"} {
		conformance := exec.CommandContext(t.Context(), program)
		conformance.Dir = t.TempDir()
		// Lists are split at each single space.
		conformance.Env = append(os.Environ(),
			"OCI_REGISTRY="+c.Address(), "OCI_TLS=disabled", "OCI_REPO1="+repository, "OCI_VERSION=1.1", "OCI_RESULTS_DIR="+t.TempDir(),
			"OCI_API_PUSH=false", "OCI_API_BLOBS_DELETE=false", "OCI_API_MANIFESTS_DELETE=false", "OCI_API_TAGS_DELETE=false",
			"OCI_RO_DATA_TAGS="+tag+" idx", "OCI_RO_DATA_MANIFESTS="+digestOf(t, image)+" "+indexDigest.String(),
			"OCI_RO_DATA_BLOBS="+strings.Join(blobs, " "), "OCI_RO_DATA_REFERRERS="+digestOf(t, image))
		var stdout, stderr bytes.Buffer
		conformance.Stdout, conformance.Stderr = &stdout, &stderr
		// Without push it always ends with a panic behind its summary, so its exit code has no meaning.
		if err := conformance.Run(); err != nil {
			if _, ended := errors.AsType[*exec.ExitError](err); !ended {
				t.Fatal(err)
			}
		}
		want := map[string]string{"Result": "Pass", "Pass": "22", "FAIL": "0", "Error": "0", "Skip": "0"}
		if diff := cmp.Diff(want, conformanceSummary(stdout.String())); diff != "" {
			t.Errorf("%s: -want +got\n%s\n%s\n%s", run, diff, &stdout, &stderr)
		}
	}
}

// conformanceSummary returns the result and the counts of the tests that ran.
func conformanceSummary(report string) map[string]string {
	got := map[string]string{}
	if m := regexp.MustCompile(`(?m)^OCI Conformance Result: (\w+)$`).FindStringSubmatch(report); m != nil {
		got["Result"] = m[1]
	}
	for _, m := range regexp.MustCompile(`(?m)^  (Pass|FAIL|Error|Skip)\.*: +(\d+)$`).FindAllStringSubmatch(report, -1) {
		got[m[1]] = m[2]
	}
	return got
}

func buildConformance(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "conformance")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", program, "tool")
	build.Dir = filepath.Join("..", "..", "hack", "conformance")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the conformance tests: %v\n%s", err, output)
	}
	return program
}
