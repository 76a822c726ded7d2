// SPDX-License-Identifier: Apache-2.0

package images_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/klauspost/compress/zstd"

	"github.com/registry-cache/extension/test/testbed/images"
)

func TestFormats(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		format                  images.Format
		compression             images.Compression
		manifest, config, layer types.MediaType
	}{
		"default":       {"", "", types.DockerManifestSchema2, types.DockerConfigJSON, types.DockerLayer},
		"Docker":        {images.Docker, images.Gzip, types.DockerManifestSchema2, types.DockerConfigJSON, types.DockerLayer},
		"OCI":           {images.OCI, "", types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayer},
		"OCI with zstd": {images.OCI, images.Zstd, types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayerZStd},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec := images.Spec{Seed: 1, LayerSizes: []int64{0, 3000, 1_000_000}, Format: tc.format, Compression: tc.compression}
			image := generate(t, spec)
			if tc.compression != images.Zstd { // which this function takes for gzip
				if err := validate.Image(image); err != nil {
					t.Errorf("the image is not valid: %v", err)
				}
			}
			if a, b := digest(t, image), digest(t, generate(t, spec)); a != b {
				t.Errorf("two images of one spec have the digests %s and %s", a, b)
			}
			manifest, err := image.Manifest()
			if err != nil {
				t.Fatal(err)
			}
			got := []types.MediaType{manifest.MediaType, manifest.Config.MediaType}
			for _, layer := range manifest.Layers {
				got = append(got, layer.MediaType)
			}
			if diff := cmp.Diff([]types.MediaType{tc.manifest, tc.config, tc.layer, tc.layer, tc.layer}, got); diff != "" {
				t.Errorf("media types (-want +got):\n%s", diff)
			}
		})
	}
}

func TestZstdLayersAreWhatTheirDigestsSay(t *testing.T) {
	t.Parallel()
	layers, err := generate(t, images.Spec{Seed: 1, LayerSizes: []int64{0, 1_000_000}, Format: images.OCI, Compression: images.Zstd}).Layers()
	if err != nil {
		t.Fatal(err)
	}
	for i, layer := range layers {
		compressed, err := layer.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(compressed)
		if err := errors.Join(err, compressed.Close()); err != nil {
			t.Fatal(err)
		}
		decoder, err := zstd.NewReader(bytes.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		defer decoder.Close()
		plain, _, err := v1.SHA256(decoder)
		if err != nil {
			t.Fatal(err)
		}
		digest, err := layer.Digest()
		if got := sha256.Sum256(content); err != nil || hex.EncodeToString(got[:]) != digest.Hex {
			t.Errorf("layer %d has digest %x, says %s, %v", i, got, digest, err)
		}
		if diffID, err := layer.DiffID(); err != nil || plain != diffID {
			t.Errorf("layer %d has diff ID %s, says %s, %v", i, plain, diffID, err)
		}
	}
}

func TestBuildMakesIndexes(t *testing.T) {
	t.Parallel()
	for format, want := range map[images.Format]types.MediaType{images.Docker: types.DockerManifestList, images.OCI: types.OCIImageIndex} {
		artifact, err := images.Build(images.Spec{Seed: 1, LayerSizes: []int64{1000}, Platforms: []string{"linux/amd64", "linux/arm/v7"}, Format: format})
		if err != nil {
			t.Fatal(err)
		}
		index, ok := artifact.(v1.ImageIndex)
		if !ok {
			t.Fatalf("%s: built a %T", format, artifact)
		}
		if err := validate.Index(index); err != nil {
			t.Errorf("%s: the index is not valid: %v", format, err)
		}
		manifest, err := index.IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		var platforms []string
		for _, descriptor := range manifest.Manifests {
			platforms = append(platforms, descriptor.Platform.String())
		}
		if diff := cmp.Diff([]string{"linux/amd64", "linux/arm/v7"}, platforms); diff != "" || manifest.MediaType != want {
			t.Errorf("%s: an index of type %s with the platforms (-want +got):\n%s", format, manifest.MediaType, diff)
		}
	}
	artifact, err := images.Build(images.Spec{Seed: 1, LayerSizes: []int64{1000}})
	if _, ok := artifact.(v1.Image); !ok || err != nil {
		t.Errorf("without platforms: %T, %v, want an image", artifact, err)
	}
}

func TestBadFormatsAreRefused(t *testing.T) {
	t.Parallel()
	for want, spec := range map[string]images.Spec{
		`format: is "OCI", must be docker or oci`:                                                  {Format: "OCI"},
		`compression: is "xz", must be gzip or zstd`:                                               {Compression: "xz"},
		`compression: zstd needs the format oci`:                                                   {Compression: images.Zstd},
		`platforms: must be empty beside architecture and variant`:                                 {Platforms: []string{"linux/amd64"}, Architecture: "arm64"},
		`platforms[1]: is "arm64", must be linux/<architecture> or linux/<architecture>/<variant>`: {Platforms: []string{"linux/amd64", "arm64"}},
	} {
		spec.LayerSizes = []int64{1}
		if _, err := images.Build(spec); err == nil || err.Error() != want {
			t.Errorf("got error %v\nwant %s", err, want)
		}
	}
	if _, err := images.Generate(images.Spec{LayerSizes: []int64{1}, Platforms: []string{"linux/amd64"}}); err == nil {
		t.Error("one image is generated for a list of platforms")
	}
}
