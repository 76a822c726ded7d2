// SPDX-License-Identifier: Apache-2.0

package imagevector

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestEngine(t *testing.T) {
	const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for _, tc := range []struct{ name, override, want string }{
		{"built in", "", "ghcr.io/registry-cache/registry-cache:v1.2.3"},
		{"other repository", "repository: mirror.example.com/cache", "mirror.example.com/cache:v1.2.3"},
		{"other repository and tag", "repository: mirror.example.com/cache\n  tag: v9", "mirror.example.com/cache:v9"},
		{"digest", "repository: mirror.example.com/cache\n  tag: " + digest, "mirror.example.com/cache@" + digest},
		{"whole reference", "ref: mirror.example.com/cache:v9@" + digest, "mirror.example.com/cache:v9@" + digest},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := ""
			if tc.override != "" {
				path = filepath.Join(t.TempDir(), "images.yaml")
				if err := os.WriteFile(path, []byte("images:\n- name: registry-cache\n  "+tc.override+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("IMAGEVECTOR_OVERWRITE", path)
			got, err := Engine("registry-cache", "v1.2.3")
			if err != nil {
				t.Fatal(err)
			}
			if got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

func TestEngineWithoutTheNamedFile(t *testing.T) {
	t.Setenv("IMAGEVECTOR_OVERWRITE", filepath.Join(t.TempDir(), "missing.yaml"))
	_, err := Engine("registry-cache", "v1.2.3")
	if err == nil || !strings.HasPrefix(err.Error(), "reading the image vector of IMAGEVECTOR_OVERWRITE: ") {
		t.Errorf("got error %v", err)
	}
}

// An operator may overwrite the image of one engine and leave the other one as it is.
func TestEnginesHaveTheirOwnImages(t *testing.T) {
	path := filepath.Join(t.TempDir(), "images.yaml")
	if err := os.WriteFile(path, []byte("images:\n- name: registry-cache\n  repository: mirror.example.com/cache\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("IMAGEVECTOR_OVERWRITE", path)
	for name, want := range map[string]string{
		"registry-cache": "mirror.example.com/cache:v1.2.3",
		"distribution":   "ghcr.io/registry-cache/distribution:v1.2.3",
	} {
		if got, err := Engine(name, "v1.2.3"); err != nil || got != want {
			t.Errorf("%s: got %s, %v, want %s", name, got, err, want)
		}
	}
	if _, err := Engine("nginx", "v1.2.3"); err == nil || !strings.HasPrefix(err.Error(), "looking up the image nginx: ") {
		t.Errorf("got error %v for an engine that is none", err)
	}
}
