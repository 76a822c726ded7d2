// SPDX-License-Identifier: Apache-2.0

// Package images makes container images that depend on their description alone: equal descriptions give equal digests
// on every machine. Their content is pseudo-random, so that no compression on the way makes a transfer look smaller
// than it is, and it is generated while it is read, so that an image of any size costs no memory.
package images

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/registry-cache/extension/hack/ociimage"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// MaxLayers is the number of layers that overlayfs can mount in one container; an image with more cannot run.
const MaxLayers = 127

// MaxSize bounds the content of one generated image, in bytes.
const MaxSize = 8 << 30

// Artifact is what a tag can name: a v1.Image or a v1.ImageIndex.
type Artifact interface {
	MediaType() (types.MediaType, error)
	Digest() (v1.Hash, error)
	RawManifest() ([]byte, error)
}

// Spec describes a generated image.
type Spec struct {
	// Seed selects the content: images that differ in it share no blob.
	Seed uint64 `json:"seed"`
	// LayerSizes are the bytes of the one file in each layer, lowest layer first: 1 to MaxLayers entries, none
	// negative, MaxSize in total. The blob is larger by the tar and gzip framing, less than 3 KiB plus 0.01 %.
	LayerSizes []int64 `json:"layerSizes"`
	// Architecture is the image's GOARCH; empty means that of this machine.
	Architecture string `json:"architecture,omitempty"`
	// Variant is the variant of Architecture, for example "v7"; usually empty.
	Variant string `json:"variant,omitempty"`
	// Platforms, for example "linux/arm/v7", make it an index with one image of these layers for each, in place of
	// Architecture and Variant. Build makes indexes, Generate refuses them.
	Platforms []string `json:"platforms,omitempty"`
	// Format is that of manifest, config and layers; empty means Docker. Formats and compressions share content.
	Format Format `json:"format,omitempty"`
	// Compression is that of the layers; empty means Gzip. Docker has no media type for Zstd.
	Compression Compression `json:"compression,omitempty"`
}

// Validate returns an error that names the field which is out of range.
func (s Spec) Validate() error {
	if n := len(s.LayerSizes); n == 0 || n > MaxLayers {
		return fmt.Errorf("layerSizes: has %d entries, must have 1 to %d", n, MaxLayers)
	}
	var total int64
	for i, size := range s.LayerSizes {
		if size < 0 || size > MaxSize-total {
			return fmt.Errorf("layerSizes[%d]: is %d, must not be negative nor lift the total above %d bytes", i, size, int64(MaxSize))
		}
		total += size
	}
	if len(s.Platforms) > 0 && s.Architecture+s.Variant != "" {
		return errors.New("platforms: must be empty beside architecture and variant")
	}
	for i, platform := range s.Platforms {
		if _, err := parsePlatform(platform); err != nil {
			return fmt.Errorf("platforms[%d]: %w", i, err)
		}
	}
	return s.validateFormat()
}

// Build returns the image or index that s describes, see Generate and Index.
func Build(s Spec) (Artifact, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if len(s.Platforms) == 0 {
		return Generate(s)
	}
	specs := make([]Spec, len(s.Platforms))
	for i, platform := range s.Platforms {
		p, err := parsePlatform(platform)
		if err != nil {
			return nil, err
		}
		specs[i] = s
		specs[i].Platforms, specs[i].Architecture, specs[i].Variant = nil, p.Architecture, p.Variant
	}
	return Index(specs...)
}

func parsePlatform(s string) (*v1.Platform, error) {
	p, err := v1.ParsePlatform(s)
	if err != nil || p.OS != "linux" || p.Architecture == "" || p.OSVersion != "" {
		return nil, fmt.Errorf("is %q, must be linux/<architecture> or linux/<architecture>/<variant>", s)
	}
	return p, nil
}

// Generate returns the image that s describes. The layers are generated once here, for their digests, and again each
// time one of them is read. The image is safe for concurrent use.
func Generate(s Spec) (v1.Image, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if len(s.Platforms) > 0 {
		return nil, errors.New("platforms: are those of an index")
	}
	if s.Architecture == "" {
		s.Architecture = runtime.GOARCH
	}
	layers := make([]v1.Layer, len(s.LayerSizes))
	for i, size := range s.LayerSizes {
		layer, err := newLayer(s, i, size)
		if err != nil {
			return nil, fmt.Errorf("generating layer %d: %w", i, err)
		}
		layers[i] = layer
	}
	image, err := mutate.AppendLayers(s.empty(), layers...)
	if err != nil {
		return nil, fmt.Errorf("appending layers: %w", err)
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("reading image config: %w", err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Variant = "linux", s.Architecture, s.Variant
	return mutate.ConfigFile(image, file)
}

// Index returns an index with one generated image for each spec, in the format of the first one; in Docker's it is
// called a manifest list.
func Index(specs ...Spec) (v1.ImageIndex, error) {
	index := v1.ImageIndex(empty.Index)
	if len(specs) == 0 || specs[0].Format != OCI {
		index = mutate.IndexMediaType(index, types.DockerManifestList)
	}
	for _, spec := range specs {
		image, err := Generate(spec)
		if err != nil {
			return nil, fmt.Errorf("generating image for %s%s: %w", spec.Architecture, spec.Variant, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: "linux", Architecture: spec.Architecture, Variant: spec.Variant},
		}})
	}
	return index, nil
}

// Runnable returns an image for this machine's architecture that runs the static program at path as user 65532. Images
// of other names share no blob with it: a transfer of one would hide the other's. The file must exist as long as the
// image is used.
func Runnable(path, name string) (v1.Image, error) {
	return ociimage.Build(ociimage.Config{
		Files: []ociimage.File{
			{Path: "/sample", Mode: 0o755, Source: path},
			{Path: "/name", Content: []byte(name + "\n")},
		},
		Entrypoint: []string{"/sample"},
		User:       "65532:65532",
	})
}
