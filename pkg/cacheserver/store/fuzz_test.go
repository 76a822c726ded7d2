// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"strings"
	"testing"
)

// A link with any content either names its digest or is treated as missing.
func FuzzLink(f *testing.F) {
	for _, content := range []string{"sha256:" + layerHex, "sha256:" + manifestHex, "sha256:" + layerHex + "\n", "sha256:" + strings.ToUpper(layerHex), "", "\x00", "../../etc/passwd", "sha512:" + layerHex + layerHex} {
		f.Add(content)
	}
	root := f.TempDir()
	s, err := Open(root, Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(s.Close)
	if err := tryCommit(s, repository); err != nil {
		f.Fatal(err)
	}
	if err := s.PutManifest(repository, manifestDigest, []byte(manifest)); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, content string) {
		for _, path := range []string{layerLink, revisionLink, tagLink} {
			write(t, root, path, content)
		}
		blob, err := s.Blob(repository, layerDigest)
		if err == nil {
			if err := blob.Close(); err != nil {
				t.Error(err)
			}
			if content != "sha256:"+layerHex {
				t.Errorf("the link %q gave the blob", content)
			}
		} else if !errors.Is(err, ErrNotFound) || content == "sha256:"+layerHex {
			t.Errorf("blob by the link %q: %v", content, err)
		}
		if _, err := s.Manifest(repository, manifestDigest); (err == nil) != (content == "sha256:"+manifestHex) || err != nil && !errors.Is(err, ErrNotFound) {
			t.Errorf("manifest by the link %q: %v", content, err)
		}
		d, err := s.Tag(repository, "3.13.2")
		if err != nil && !errors.Is(err, ErrNotFound) || err == nil && d.String() != content {
			t.Errorf("tag by the link %q: %s, %v", content, d, err)
		}
	})
}
