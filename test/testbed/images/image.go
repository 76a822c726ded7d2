// Package images makes container images that depend on their description alone: equal descriptions give equal digests
// on every machine. Their content is pseudo-random, so that no compression on the way makes a transfer look smaller
// than it is, and it is generated while it is read, so that an image of any size costs no memory.
package images

import (
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

// Spec describes a generated image with one manifest, in Docker's schema 2 with gzip layers.
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
	return nil
}

// Generate returns the image that s describes. The layers are generated once here, for their digests, and again each
// time one of them is read. The image is safe for concurrent use.
func Generate(s Spec) (v1.Image, error) {
	if err := s.Validate(); err != nil {
		return nil, err
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
	image, err := mutate.AppendLayers(empty.Image, layers...)
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

// Index returns an index in Docker's format (a manifest list) with one generated image for each spec.
func Index(specs ...Spec) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.DockerManifestList)
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
