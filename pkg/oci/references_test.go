// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const otherDigest = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"

func TestReferences(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, content, mediaType string
		want                     []Descriptor
		err                      error
	}{
		{
			name: "image",
			content: `{"schemaVersion":2,"mediaType":"` + MediaTypeManifest + `","config":{"mediaType":"c","digest":"` + someDigest + `","size":7},
				"layers":[{"mediaType":"l","digest":"` + otherDigest + `","size":8},{"mediaType":"l","digest":"` + otherDigest + `","size":8}],
				"subject":{"mediaType":"s","digest":"` + someDigest + `","size":9}}`,
			mediaType: MediaTypeManifest,
			want: []Descriptor{
				{Role: RoleConfig, MediaType: "c", Digest: someDigest, Size: 7},
				{Role: RoleLayer, MediaType: "l", Digest: otherDigest, Size: 8},
				{Role: RoleLayer, MediaType: "l", Digest: otherDigest, Size: 8},
			},
		},
		{
			name: "index",
			content: `{"schemaVersion":2,"manifests":[{"digest":"` + someDigest + `","size":1,"platform":{"os":"linux","architecture":"arm","variant":"v7"}},
				{"digest":"` + otherDigest + `","size":2,"platform":{"os":"linux","architecture":"amd64"}},{"digest":"` + otherDigest + `","size":2,"platform":{}}]}`,
			mediaType: MediaTypeIndex,
			want: []Descriptor{
				{Role: RoleManifest, Digest: someDigest, Size: 1, Platform: "linux/arm/v7"},
				{Role: RoleManifest, Digest: otherDigest, Size: 2, Platform: "linux/amd64"},
				{Role: RoleManifest, Digest: otherDigest, Size: 2},
			},
		},
		{name: "docker list", content: `{"schemaVersion":2,"mediaType":"` + MediaTypeDockerList + `","manifests":[]}`, mediaType: MediaTypeDockerList},
		{name: "no layers", content: `{"schemaVersion":2,"config":{"digest":"` + someDigest + `"}}`, mediaType: MediaTypeManifest,
			want: []Descriptor{{Role: RoleConfig, Digest: someDigest}}},
		{name: "no config", content: `{"schemaVersion":2,"mediaType":"` + MediaTypeManifest + `"}`, err: ErrManifestInvalid},
		{name: "another digest", content: `{"schemaVersion":2,"config":{"digest":"md5:d41d8cd98f00b204e9800998ecf8427e"}}`, err: ErrDigestInvalid},
		{name: "a path as a digest", content: `{"schemaVersion":2,"manifests":[{"digest":"sha256:../../x"}]}`, err: ErrManifestInvalid},
		{name: "negative size", content: `{"schemaVersion":2,"config":{"digest":"` + someDigest + `","size":-1}}`, err: ErrManifestInvalid},
		{name: "config of another type", content: `{"schemaVersion":2,"config":[]}`, err: ErrManifestInvalid},
		{name: "not JSON", content: `<html>`, err: ErrManifestUnknownType},
		{name: "too large", content: `{"schemaVersion":2,"manifests":[]}` + strings.Repeat(" ", MaxManifestSize), err: ErrManifestInvalid},
	} {
		mediaType, got, err := References([]byte(test.content))
		if !errors.Is(err, test.err) {
			t.Errorf("%s: error %v, want %v", test.name, err, test.err)
		}
		if mediaType != test.mediaType {
			t.Errorf("%s: media type %q, want %q", test.name, mediaType, test.mediaType)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", test.name, diff)
		}
	}
}

// Whatever a manifest says, its references can be used as paths, and it has a type exactly where ManifestMediaType tells
// one or what is wrong is told.
func FuzzReferences(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"` + someDigest + `","size":7},"layers":[{"digest":"` + otherDigest + `"}]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"` + someDigest + `","platform":{"os":"linux","architecture":"arm","variant":"v7"}}]}`))
	f.Add([]byte(`{"schemaVersion":2,"config":null,"layers":{}}`))
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"` + MediaTypeDockerManifest + `","config":{"size":1e99}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, content []byte) {
		mediaType, references, err := References(content)
		if err != nil {
			if mediaType != "" || references != nil || !errors.Is(err, ErrManifestInvalid) && !errors.Is(err, ErrManifestUnknownType) {
				t.Errorf("References(%q) = %q, %v, %v", content, mediaType, references, err)
			}
			return
		}
		if known, err := ManifestMediaType(content); err != nil || known != mediaType {
			t.Errorf("References(%q) has the media type %q, ManifestMediaType %q, %v", content, mediaType, known, err)
		}
		for _, d := range references {
			if _, err := ParseDigest(d.Digest.String()); err != nil || d.Size < 0 {
				t.Error(fmt.Errorf("References(%q): %+v: %w", content, d, err))
			}
		}
	})
}
