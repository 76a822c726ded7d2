// SPDX-License-Identifier: Apache-2.0

package container

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseState(t *testing.T) {
	t.Parallel()
	for engine, wantIP := range map[string]string{"docker": "172.18.0.5", "podman": "10.89.0.5"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			inspected, err := os.ReadFile(filepath.Join("testdata", engine+".json"))
			if err != nil {
				t.Fatal(err)
			}
			s, err := parseState(inspected)
			if err != nil {
				t.Fatal(err)
			}
			if ip := s.address("kind", "0123456789abcdef"); ip != wantIP {
				t.Errorf("the address is %q, want %q", ip, wantIP)
			}
			if ip := s.address("other", "0123456789abcdef"); ip != "" {
				t.Errorf("the address in a network that the container is not in is %q", ip)
			}
			if ip := s.address("kind", "fedcba9876543210"); ip != "" {
				t.Errorf("a container with another fingerprint is used, at %s", ip)
			}
			s.State.Running = false
			if ip := s.address("kind", "0123456789abcdef"); ip != "" {
				t.Errorf("a stopped container is used, at %s", ip)
			}
		})
	}
}

func TestParseStateRefusesOtherAnswers(t *testing.T) {
	t.Parallel()
	for inspected, want := range map[string]string{
		"":        "reading what the container engine tells",
		"[]":      "tells about 0 containers",
		"[{},{}]": "tells about 2 containers",
	} {
		if _, err := parseState([]byte(inspected)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parsing %q gives the error %v, want one with %q", inspected, err, want)
		}
	}
}

func TestFingerprint(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for name, print := range map[string]string{
		"base":    fingerprint("image", "network", "dir", []byte("pem")),
		"image":   fingerprint("image2", "network", "dir", []byte("pem")),
		"network": fingerprint("image", "network2", "dir", []byte("pem")),
		"dir":     fingerprint("image", "network", "dir2", []byte("pem")),
		"ca":      fingerprint("image", "network", "dir", []byte("pem2")),
		"border":  fingerprint("imagen", "etwork", "dir", []byte("pem")),
	} {
		if other, ok := seen[print]; ok {
			t.Errorf("%s and %s have the same fingerprint", name, other)
		}
		seen[print] = name
	}
	if again := fingerprint("image", "network", "dir", []byte("pem")); seen[again] != "base" {
		t.Errorf("equal inputs have the fingerprints %v and %s", seen, again)
	}
}
