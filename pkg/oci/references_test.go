// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"errors"
	"fmt"
	"iter"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const otherDigest = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"

func TestReferences(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, content string
		want          []Descriptor
		err           error
	}{
		{
			name: "image",
			content: `{"schemaVersion":2,"mediaType":"` + MediaTypeManifest + `","config":{"mediaType":"c","digest":"` + someDigest + `","size":7},
				"layers":[{"mediaType":"l","digest":"` + otherDigest + `","size":8},{"mediaType":"l","digest":"` + otherDigest + `","size":8}],
				"subject":{"mediaType":"s","digest":"` + someDigest + `","size":9}}`,
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
			want: []Descriptor{
				{Role: RoleManifest, Digest: someDigest, Size: 1, Platform: "linux/arm/v7"},
				{Role: RoleManifest, Digest: otherDigest, Size: 2, Platform: "linux/amd64"},
				{Role: RoleManifest, Digest: otherDigest, Size: 2},
			},
		},
		{name: "docker list", content: `{"schemaVersion":2,"mediaType":"` + MediaTypeDockerList + `","manifests":[]}`},
		{name: "no layers", content: `{"schemaVersion":2,"config":{"digest":"` + someDigest + `"}}`,
			want: []Descriptor{{Role: RoleConfig, Digest: someDigest}}},
		{name: "no config", content: `{"schemaVersion":2,"mediaType":"` + MediaTypeManifest + `"}`, err: ErrManifestInvalid},
		{name: "wrong digest", content: `{"schemaVersion":2,"config":{"digest":"sha256:d41d8cd98f00b204e9800998ecf8427e"}}`, err: ErrDigestInvalid},
		{name: "digests of other algorithms", content: `{"schemaVersion":2,"config":{"digest":"md5:d41d8cd98f00b204e9800998ecf8427e"},` +
			`"layers":[{"digest":"sha512:` + strings.Repeat("0", 128) + `"}]}`},
		{name: "a path as a digest", content: `{"schemaVersion":2,"manifests":[{"digest":"sha256:../../x"}]}`, err: ErrManifestInvalid},
		{name: "negative size", content: `{"schemaVersion":2,"config":{"digest":"` + someDigest + `","size":-1}}`, err: ErrManifestInvalid},
		{name: "config of another type", content: `{"schemaVersion":2,"config":[]}`, err: ErrManifestInvalid},
		{name: "not JSON", content: `<html>`, err: ErrManifestUnknownType},
		{name: "too large", content: `{"schemaVersion":2,"manifests":[]}` + strings.Repeat(" ", MaxManifestSize), err: ErrManifestInvalid},
	} {
		got, err := collect(References([]byte(test.content)))
		if !errors.Is(err, test.err) {
			t.Errorf("%s: error %v, want %v", test.name, err, test.err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", test.name, diff)
		}
	}
}

// collect returns the elements before the first error, and the error. An error must be the last element.
func collect(references iter.Seq2[Descriptor, error]) (all []Descriptor, err error) {
	for d, failure := range references {
		if err != nil {
			return nil, fmt.Errorf("an element after the error %w", err)
		}
		if failure != nil {
			err = failure
			continue
		}
		all = append(all, d)
	}
	return all, err
}

func TestReferencesStop(t *testing.T) {
	t.Parallel()
	content := `{"schemaVersion":2,"config":{"digest":"` + someDigest + `"},"layers":[` + strings.Repeat(`{"digest":"`+otherDigest+`"},`, 3) + `{}]}`
	for stop := range 4 {
		count := 0
		for _, err := range References([]byte(content)) {
			if err != nil {
				t.Errorf("stop after %d: %v", stop, err)
			}
			if count == stop {
				break
			}
			count++
		}
	}
	if got, err := collect(References([]byte(content))); len(got) != 4 || err == nil || !strings.Contains(err.Error(), "layer 3: invalid digest") {
		t.Errorf("%d descriptors, %v", len(got), err)
	}
}

func TestReferencesAreLimited(t *testing.T) {
	t.Parallel()
	element := `{"digest":"` + otherDigest + `"},`
	for extra := range 2 {
		layers := strings.TrimSuffix(strings.Repeat(element, MaxReferences-1+extra), ",")
		got, err := collect(References([]byte(`{"schemaVersion":2,"config":{"digest":"` + someDigest + `"},"layers":[` + layers + `]}`)))
		if len(got) != MaxReferences || errors.Is(err, ErrManifestInvalid) != (extra > 0) {
			t.Errorf("%d descriptors: got %d, %v", MaxReferences+extra, len(got), err)
		}
	}
}

// References of any input can be used as paths, and a manifest without an error has a type.
func FuzzReferences(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"` + someDigest + `","size":7},"layers":[{"digest":"` + otherDigest + `"}]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"` + someDigest + `","platform":{"os":"linux","architecture":"arm","variant":"v7"}}]}`))
	f.Add([]byte(`{"schemaVersion":2,"config":null,"layers":{}}`))
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"` + MediaTypeDockerManifest + `","config":{"size":1e99}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, content []byte) {
		references, err := collect(References(content))
		if err != nil && !errors.Is(err, ErrManifestInvalid) && !errors.Is(err, ErrManifestUnknownType) {
			t.Errorf("References(%q): %v", content, err)
		}
		if _, unknown := ManifestMediaType(content); err == nil && unknown != nil {
			t.Errorf("References(%q) is valid, ManifestMediaType: %v", content, unknown)
		}
		for _, d := range references {
			if _, err := ParseDigest(d.Digest.String()); err != nil || d.Size < 0 {
				t.Error(fmt.Errorf("References(%q): %+v: %w", content, d, err))
			}
		}
	})
}
