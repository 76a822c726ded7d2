// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/registry-cache/extension/hack/ociimage"
)

func TestArchiveImages(t *testing.T) {
	t.Parallel()
	images, want := map[string]v1.Image{}, map[string]v1.Hash{}
	for reference, spelled := range map[string]string{
		"docker.io/library/alpine:3.13.2": "docker.io/library/alpine:3.13.2",
		"ghcr.io/a/b:v1":                  "ghcr.io/a/b:v1",
	} {
		image, err := ociimage.Build(ociimage.Config{Files: []ociimage.File{{Path: "/reference", Content: []byte(reference)}}})
		if err != nil {
			t.Fatal(err)
		}
		images[reference] = image
		if want[spelled], err = image.ConfigName(); err != nil {
			t.Fatal(err)
		}
	}
	archive := filepath.Join(t.TempDir(), "images.tar")
	if err := ociimage.WriteArchive(archive, images); err != nil {
		t.Fatal(err)
	}
	got, err := archiveImages(archive)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("images (-want +got):\n%s", diff)
	}
	if _, err := archiveImages(filepath.Join(t.TempDir(), "missing.tar")); err == nil {
		t.Error("no error for a missing archive")
	}
}

func TestHaveImages(t *testing.T) {
	t.Parallel()
	wanted := map[string]v1.Hash{"a:1": {Algorithm: "sha256", Hex: "aa"}, "b:1": {Algorithm: "sha256", Hex: "bb"}}
	const a, b = `{"image":"a:1","manifest":{"config":{"digest":"sha256:aa"}}}` + "\n", `{"image":"b:1","manifest":{"config":{"digest":"sha256:bb"}}}` + "\n"
	for name, tc := range map[string]struct {
		printed   string
		want      bool
		wantError bool
	}{
		"both":                     {printed: a + b, want: true},
		"one":                      {printed: a},
		"none":                     {printed: ""},
		"another build":            {printed: a + `{"image":"b:1","manifest":{"config":{"digest":"sha256:cc"}}}`},
		"an index":                 {printed: a + `{"image":"b:1","manifest":{"manifests":[{"digest":"sha256:bb"}]}}`},
		"a manifest that is cut":   {printed: a + `{"image":"b:1","manifest":{"con`, wantError: true},
		"content that is no JSON":  {printed: "ctr: not found", wantError: true},
		"the same image two times": {printed: a + a},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := haveImages([]byte(tc.printed), wanted)
			if got != tc.want || (err != nil) != tc.wantError {
				t.Errorf("got %t, %v, want %t, error %t", got, err, tc.want, tc.wantError)
			}
		})
	}
}
