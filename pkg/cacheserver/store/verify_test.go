// SPDX-License-Identifier: Apache-2.0

package store

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A verification is remembered until the file is replaced or dropped: it says nothing about another file.
func TestVerifiedSince(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := open(t, root, Options{})
	put := func() {
		t.Helper()
		if err := s.PutManifest(repository, manifestDigest, []byte(manifest)); err != nil {
			t.Fatal(err)
		}
	}
	verify := func() (intact bool) {
		t.Helper()
		f, err := s.Content(manifestDigest)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		intact, err = s.Verify(t.Context(), f, manifestDigest, func() {})
		if err != nil {
			t.Fatal(err)
		}
		return intact
	}
	expect := func(situation string, since time.Time, want bool) {
		t.Helper()
		if got := s.VerifiedSince(manifestDigest, since); got != want {
			t.Errorf("%s: verified %t, want %t", situation, got, want)
		}
	}
	start := time.Now()

	put()
	expect("never verified", start, false)
	if !verify() {
		t.Fatal("intact content is corrupt")
	}
	expect("verified", start, true)
	expect("verified earlier", time.Now(), false)

	corrupt := func() {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, manifestFile), make([]byte, len(manifest)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	corrupt()
	put()
	expect("replaced", start, false)
	if !verify() {
		t.Fatal("replaced content is corrupt")
	}
	corrupt()
	if verify() {
		t.Fatal("corrupt content is intact")
	}
	expect("corrupt", start, false)
}
