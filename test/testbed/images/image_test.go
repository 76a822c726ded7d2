// SPDX-License-Identifier: Apache-2.0

package images_test

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/registry-cache/extension/test/testbed/images"
)

func TestGenerateIsDeterministic(t *testing.T) {
	t.Parallel()
	spec := images.Spec{Seed: 7, LayerSizes: []int64{0, 1, 511, 512, 100_000}, Architecture: "amd64"}
	first, again := generate(t, spec), generate(t, spec)
	if a, b := digest(t, first), digest(t, again); a != b {
		t.Errorf("two images of one spec have the digests %s and %s", a, b)
	}
	if err := validate.Image(first); err != nil {
		t.Errorf("the image is not valid: %v", err)
	}
	// What differs in any part of the spec must not share a layer, or a transfer of one would hide the other's.
	for name, other := range map[string]images.Spec{
		"seed":         {Seed: 8, LayerSizes: spec.LayerSizes, Architecture: "amd64"},
		"architecture": {Seed: 7, LayerSizes: spec.LayerSizes, Architecture: "arm64"},
		"variant":      {Seed: 7, LayerSizes: spec.LayerSizes, Architecture: "amd64", Variant: "v2"},
	} {
		mine, theirs := layerDigests(t, first), layerDigests(t, generate(t, other))
		for i := 1; i < len(mine); i++ { // the first one has no content
			if mine[i] == theirs[i] {
				t.Errorf("an image of another %s shares layer %d", name, i)
			}
		}
	}
}

func TestGenerateKeepsSizes(t *testing.T) {
	t.Parallel()
	sizes := []int64{0, 3000, 1_000_000}
	layers, err := generate(t, images.Spec{Seed: 3, LayerSizes: sizes}).Layers()
	if err != nil {
		t.Fatal(err)
	}
	for i, layer := range layers {
		blob, err := layer.Size()
		if err != nil {
			t.Fatal(err)
		}
		if limit := sizes[i] + sizes[i]/10_000 + 3<<10; blob < sizes[i] || blob > limit {
			t.Errorf("layer %d of %d bytes is a blob of %d bytes, want at most %d", i, sizes[i], blob, limit)
		}
		content, err := layer.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		defer content.Close()
		archive := tar.NewReader(content)
		header, err := archive.Next()
		if err != nil {
			t.Fatal(err)
		}
		if header.Size != sizes[i] || !header.ModTime.IsZero() && header.ModTime.Unix() != 0 {
			t.Errorf("layer %d holds %d bytes of %s, want %d of time zero", i, header.Size, header.ModTime, sizes[i])
		}
		if n, err := io.Copy(io.Discard, archive); n != sizes[i] || err != nil {
			t.Errorf("reading layer %d: %d bytes, %v", i, n, err)
		}
		if _, err := archive.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("layer %d does not end after its file: %v", i, err)
		}
	}
}

func TestGenerateRefusesBadSpecs(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		sizes []int64
		want  string
	}{
		"no layer":  {nil, "layerSizes: has 0 entries, must have 1 to 127"},
		"too many":  {make([]int64, 128), "layerSizes: has 128 entries, must have 1 to 127"},
		"negative":  {[]int64{1, -1}, "layerSizes[1]: is -1, must not be negative nor lift the total above 8589934592 bytes"},
		"too large": {[]int64{8 << 30, 1}, "layerSizes[1]: is 1, must not be negative nor lift the total above 8589934592 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := images.Generate(images.Spec{LayerSizes: tc.sizes})
			if err == nil || err.Error() != tc.want {
				t.Errorf("got error %v, want %s", err, tc.want)
			}
		})
	}
}

func TestRunnable(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!"), 0o600); err != nil {
		t.Fatal(err)
	}
	image, err := images.Runnable(program, "one")
	if err != nil {
		t.Fatal(err)
	}
	validateLayers(t, image)
	file, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	other, err := images.Runnable(program, "other")
	if err != nil {
		t.Fatal(err)
	}
	if layerDigests(t, image)[0] == layerDigests(t, other)[0] {
		t.Error("images of two names share their layer")
	}
	if diff := cmp.Diff([]string{"/sample"}, file.Config.Entrypoint); diff != "" {
		t.Errorf("entry point (-want +got):\n%s", diff)
	}
}

func TestCatalogueShapes(t *testing.T) {
	t.Parallel()
	catalogue := images.Catalogue("")

	index := build(t, catalogue, images.Alpine).(v1.ImageIndex)
	if err := validate.Index(index); err != nil {
		t.Errorf("%s is not valid: %v", images.Alpine, err)
	}
	if mt, err := index.MediaType(); mt != types.DockerManifestList || err != nil {
		t.Errorf("%s has media type %s, %v", images.Alpine, mt, err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, descriptor := range manifest.Manifests {
		if descriptor.Platform.Architecture != "amd64" {
			continue
		}
		image, err := index.Image(descriptor.Digest)
		if err != nil {
			t.Fatal(err)
		}
		if layers, size := blobs(t, image); layers != 1 || size < 2_800_000 || size > 2_810_000 {
			t.Errorf("%s has %d layers of %d bytes for amd64, want 1 of 2.8 MB", images.Alpine, layers, size)
		}
	}
	if len(manifest.Manifests) != 7 {
		t.Errorf("%s has %d platforms, want 7", images.Alpine, len(manifest.Manifests))
	}

	large := build(t, catalogue, images.OpsToolbelt).(v1.Image)
	if layers, size := blobs(t, large); layers != 10 || size < 240_000_000 || size > 240_100_000 {
		t.Errorf("%s has %d layers of %d bytes, want 10 of 240 MB", images.OpsToolbelt, layers, size)
	}

	if _, err := images.Lookup(catalogue, images.SampleGHCR); err == nil {
		t.Error("a catalogue without a program lists the sample image")
	}
}

func TestCatalogueWithProgram(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!"), 0o600); err != nil {
		t.Fatal(err)
	}
	catalogue := images.Catalogue(program)
	seen := map[string]bool{}
	for _, entry := range catalogue {
		if seen[entry.Reference] {
			t.Errorf("%s is listed twice", entry.Reference)
		}
		seen[entry.Reference] = true
	}
	for _, reference := range []string{images.SampleGHCR, images.SampleQuay} {
		validateLayers(t, build(t, catalogue, reference).(v1.Image))
	}
}

func BenchmarkGenerate(b *testing.B) {
	spec := images.Spec{Seed: 1, LayerSizes: []int64{64 << 20}}
	b.SetBytes(64 << 20)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := images.Generate(spec); err != nil {
			b.Fatal(err)
		}
	}
}

func generate(t *testing.T, s images.Spec) v1.Image {
	t.Helper()
	image, err := images.Generate(s)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func build(t *testing.T, catalogue []images.Entry, reference string) images.Artifact {
	t.Helper()
	entry, err := images.Lookup(catalogue, reference)
	if err != nil {
		t.Fatal(err)
	}
	artifact, err := entry.Build()
	if err != nil {
		t.Fatal(err)
	}
	return artifact
}

// validateLayers is for images of package tarball, whose manifest holds an empty map where a parsed one holds none;
// validate.Image refuses that.
func validateLayers(t *testing.T, image v1.Image) {
	t.Helper()
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if len(layers) == 0 {
		t.Error("the image has no layer")
	}
	for _, layer := range layers {
		if err := validate.Layer(layer); err != nil {
			t.Error(err)
		}
	}
}

func digest(t *testing.T, image v1.Image) v1.Hash {
	t.Helper()
	hash, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return hash
}

func layerDigests(t *testing.T, image v1.Image) []v1.Hash {
	t.Helper()
	manifest, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	var digests []v1.Hash
	for _, layer := range manifest.Layers {
		digests = append(digests, layer.Digest)
	}
	return digests
}

func blobs(t *testing.T, image v1.Image) (layers int, size int64) {
	t.Helper()
	manifest, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range manifest.Layers {
		size += layer.Size
	}
	return len(manifest.Layers), size
}
