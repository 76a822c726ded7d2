// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/registry-cache/extension/test/differential/scenario"
)

// Docker's media types, see https://distribution.github.io/distribution/spec/manifest-v2-2/.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// defaultLayerSize is the size of a layer, in bytes.
const defaultLayerSize = 1000

// content is a manifest or a blob.
type content struct {
	mediaType string
	digest    digest.Digest
	bytes     []byte
}

func newContent(mediaType string, b []byte) content {
	return content{mediaType, digest.FromBytes(b), b}
}

func (c content) descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: c.mediaType, Digest: c.digest, Size: int64(len(c.bytes))}
}

// image is the content to which a tag refers.
type image struct {
	root      content   // the manifest or index
	manifest  content   // for the platform linux/amd64
	pulled    []content // blobs of that manifest
	manifests map[digest.Digest]content
	blobs     map[digest.Digest]content
}

// newImage returns the image of a repository and round. Equal arguments give equal images.
func newImage(s scenario.Scenario, repository string, round int) (image, error) {
	types := struct{ manifest, index, config, layer string }{
		ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageLayerGzip,
	}
	if s.Has("docker-types") {
		types.manifest, types.index, types.config, types.layer = dockerManifest, dockerList, dockerConfig, dockerLayer
	}
	result := image{manifests: map[digest.Digest]content{}, blobs: map[digest.Digest]content{}}
	name := fmt.Sprintf("%s in round %d", repository, round)
	manifest := func(architecture string) (m content, blobs []content, err error) {
		config, err := json.Marshal(ocispec.Image{
			Author: name, Platform: ocispec.Platform{OS: "linux", Architecture: architecture}, RootFS: ocispec.RootFS{Type: "layers"},
		})
		if err != nil {
			return content{}, nil, err
		}
		blobs = []content{newContent(types.config, config)}
		for i := range number(s, "layers", 1) {
			seed := fmt.Sprintf("layer %d of %s", i, name)
			if i == 0 && s.Has("shared-layer") {
				seed = "shared layer"
			}
			blobs = append(blobs, newContent(types.layer, layer(seed, number(s, "layer-size", defaultLayerSize))))
		}
		document := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: types.manifest, Config: blobs[0].descriptor()}
		for _, b := range blobs {
			result.blobs[b.digest] = b
		}
		for _, b := range blobs[1:] {
			document.Layers = append(document.Layers, b.descriptor())
		}
		m, err = result.add(types.manifest, document)
		return m, blobs, err
	}
	var err error
	if result.manifest, result.pulled, err = manifest("amd64"); err != nil {
		return image{}, err
	}
	if result.root = result.manifest; !s.Has("index") {
		return result, nil
	}
	other, _, err := manifest("arm64")
	if err != nil {
		return image{}, err
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: types.index}
	for i, m := range []content{other, result.manifest} {
		d := m.descriptor()
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: []string{"arm64", "amd64"}[i]}
		index.Manifests = append(index.Manifests, d)
	}
	result.root, err = result.add(types.index, index)
	return result, err
}

// add adds a manifest or an index.
func (i image) add(mediaType string, document any) (content, error) {
	b, err := json.Marshal(document)
	if err != nil {
		return content{}, err
	}
	c := newContent(mediaType, b)
	i.manifests[c.digest] = c
	return c, nil
}

// layer returns pseudo-random hexadecimal digits, which a Content-Encoding compresses to about one half.
func layer(seed string, size int) []byte {
	random := rand.NewChaCha8(sha256.Sum256([]byte(seed)))
	half := make([]byte, size/2+1)
	_, _ = random.Read(half) // never returns an error
	return bytes.Clone(fmt.Appendf(nil, "%x", half)[:size])
}

// number returns the number of a quirk, or the default if s does not have it.
func number(s scenario.Scenario, name string, otherwise int) int {
	if n, ok := s.Number(name); ok {
		return n
	}
	return otherwise
}
