// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/registry-cache/extension/test/testbed/images"
)

// Media types of artifacts that are not images.
const (
	helmConfig     = types.MediaType("application/vnd.cncf.helm.config.v1+json")
	helmChart      = types.MediaType("application/vnd.cncf.helm.chart.content.v1.tar+gzip")
	emptyJSON      = types.MediaType("application/vnd.oci.empty.v1+json")
	inToto         = types.MediaType("application/vnd.in-toto+json")
	signature      = types.MediaType("application/vnd.dev.sigstore.bundle.v0.3+json")
	sbom           = types.MediaType("application/spdx+json")
	architecture   = "amd64" // of all images that are no index, because nodes and clients pull for it
	chartName      = "interop/charts/demo"
	chartTag       = "1.2.3"
	attestationDoc = `{"_type":"https://in-toto.io/Statement/v0.1","subject":[],"predicateType":"https://slsa.dev/provenance/v0.2"}`
)

// image is content that the suite pushes to each upstream. It is the same in each run.
type image struct {
	name            string // unique
	repository, tag string
	artifact        images.Artifact
	referrers       []v1.Image
	// chart is the digest of the chart in a Helm chart, empty for all other images.
	chart string
	// byDigest adds a reference with the digest of the artifact.
	byDigest bool
}

// reference is one pull of an image.
type reference struct {
	name string // unique
	// path is "repository:tag" or "repository@sha256:<hex>".
	path string
	// repository and version are the parts of path; version is a tag or a digest.
	repository, version string
	// root is the digest of the artifact, chart that of the chart in it.
	root, chart string
}

func (i image) references() ([]reference, error) {
	digest, err := i.artifact.Digest()
	if err != nil {
		return nil, err
	}
	references := []reference{{
		name: i.name, path: i.repository + ":" + i.tag, repository: i.repository, version: i.tag, root: digest.String(), chart: i.chart,
	}}
	if i.byDigest {
		references = append(references, reference{
			name: i.name + " by digest", path: i.repository + "@" + digest.String(), repository: i.repository, version: digest.String(), root: digest.String(),
		})
	}
	return references, nil
}

// testImages returns the images of the suite.
func testImages() ([]image, error) {
	var (
		all  []image
		errs []error
	)
	add := func(i image, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("generating image %q: %w", i.name, err))
		}
		all = append(all, i)
	}
	generated := func(i image, s images.Spec) {
		if len(s.Platforms) == 0 {
			s.Architecture = architecture
		}
		var err error
		i.artifact, err = images.Build(s)
		add(i, err)
	}
	platforms := []string{"linux/" + architecture, "linux/arm64/v8"}
	generated(image{name: "Docker schema 2", repository: "interop/docker", tag: "v1", byDigest: true},
		images.Spec{Seed: 1, LayerSizes: []int64{64 << 10, 1 << 20}})
	generated(image{name: "Docker manifest list", repository: "interop/list", tag: "v1", byDigest: true},
		images.Spec{Seed: 2, LayerSizes: []int64{300_000}, Platforms: platforms})
	add(attestedIndex(images.Spec{Seed: 3, LayerSizes: []int64{400_000}, Platforms: platforms, Format: images.OCI}))
	generated(image{name: "zstd layers", repository: "interop/zstd", tag: "v1"},
		images.Spec{Seed: 4, LayerSizes: []int64{500_000, 10_000}, Format: images.OCI, Compression: images.Zstd})
	add(emptyLayers(images.Spec{Seed: 5, LayerSizes: []int64{20_000}, Format: images.OCI, Architecture: architecture}))
	generated(image{name: "large layers", repository: "interop/large", tag: "v1"},
		images.Spec{Seed: 6, LayerSizes: []int64{4 << 20, 3 << 20, 2 << 20}, Format: images.OCI})
	generated(image{name: "repository with names of the API", repository: "a/b/c/d/blobs/manifests/e", tag: "v1"},
		images.Spec{Seed: 7, LayerSizes: []int64{30_000}})
	add(referredImage(images.Spec{Seed: 8, LayerSizes: []int64{50_000}, Format: images.OCI, Architecture: architecture}))
	add(chart())
	if len(errs) > 0 {
		return nil, errs[0]
	}
	return all, nil
}

// attestedIndex returns an index as BuildKit writes it: each image has an attestation manifest in the index.
func attestedIndex(s images.Spec) (image, error) {
	i := image{name: "OCI index with attestations", repository: "interop/attestation", tag: "v1"}
	artifact, err := images.Build(s)
	if err != nil {
		return i, err
	}
	index := artifact.(v1.ImageIndex)
	manifest, err := index.IndexManifest()
	if err != nil {
		return i, err
	}
	for _, member := range manifest.Manifests {
		attestation, err := newArtifact(descriptor{types.OCIConfigJSON, []byte(`{"architecture":"unknown","os":"unknown","config":{},"rootfs":{"type":"layers","diff_ids":[]}}`)},
			[]descriptor{{inToto, []byte(attestationDoc + member.Digest.Hex)}}, nil)
		if err != nil {
			return i, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: attestation, Descriptor: v1.Descriptor{
			Platform:    &v1.Platform{OS: "unknown", Architecture: "unknown"},
			Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": member.Digest.String()},
		}})
	}
	i.artifact, err = withoutArtifactTypes(index)
	return i, err
}

// members has another name than v1.ImageIndex, which is also the name of one of its methods.
type members = v1.ImageIndex

// rawIndex is an index with the members of another one and its own manifest.
type rawIndex struct {
	members
	raw []byte
}

// withoutArtifactTypes returns the index as BuildKit writes it: go-containerregistry adds the field artifactType to descriptors
// of images, which skopeo 1.9 does not preserve.
func withoutArtifactTypes(index v1.ImageIndex) (v1.ImageIndex, error) {
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	manifest = manifest.DeepCopy()
	for i := range manifest.Manifests {
		manifest.Manifests[i].ArtifactType = ""
	}
	raw, err := json.Marshal(manifest)
	return &rawIndex{index, raw}, err
}

func (i *rawIndex) RawManifest() ([]byte, error) { return i.raw, nil }
func (i *rawIndex) Digest() (v1.Hash, error)     { return partial.Digest(i) }
func (i *rawIndex) Size() (int64, error)         { return int64(len(i.raw)), nil }

func (i *rawIndex) IndexManifest() (*v1.IndexManifest, error) {
	return v1.ParseIndexManifest(bytes.NewReader(i.raw))
}

// emptyLayers returns an image that contains the same empty layer several times.
func emptyLayers(s images.Spec) (image, error) {
	i := image{name: "duplicate empty layers", repository: "interop/empty", tag: "v1"}
	base, err := images.Generate(s)
	if err != nil {
		return i, err
	}
	archive, err := archiveOf(nil)
	if err != nil {
		return i, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil }, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return i, err
	}
	i.artifact, err = mutate.AppendLayers(base, layer, layer, layer)
	return i, err
}

// referredImage returns an image with a signature and a list of its software as referrers.
func referredImage(s images.Spec) (image, error) {
	i := image{name: "referrers", repository: "interop/signed", tag: "v1"}
	subject, err := images.Generate(s)
	if err != nil {
		return i, err
	}
	descriptorOfSubject, err := partial.Descriptor(subject)
	if err != nil {
		return i, err
	}
	for _, content := range []descriptor{{signature, []byte(`{"signature":"none"}`)}, {sbom, []byte(`{"spdxVersion":"SPDX-2.3"}`)}} {
		referrer, err := newArtifact(descriptor{emptyJSON, []byte(`{}`)}, []descriptor{content}, &referral{descriptorOfSubject, content.mediaType})
		if err != nil {
			return i, err
		}
		i.referrers = append(i.referrers, referrer)
	}
	i.artifact = subject
	return i, nil
}

// chart returns a Helm chart.
func chart() (image, error) {
	i := image{name: "Helm chart", repository: chartName, tag: chartTag}
	archive, err := archiveOf([]file{
		{"demo/Chart.yaml", "apiVersion: v2\nname: demo\nversion: " + chartTag + "\n"},
		{"demo/templates/configmap.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: demo\n"},
	})
	if err != nil {
		return i, err
	}
	content := descriptor{helmChart, archive}
	artifact, err := newArtifact(descriptor{helmConfig, []byte(`{"name":"demo","version":"` + chartTag + `","apiVersion":"v2"}`)}, []descriptor{content}, nil)
	if err != nil {
		return i, err
	}
	digest, _, err := v1.SHA256(bytes.NewReader(archive))
	i.artifact, i.chart = artifact, digest.String()
	return i, err
}

type file struct{ name, content string }

// archiveOf returns a compressed archive that depends on the files only.
func archiveOf(files []file) ([]byte, error) {
	var archive bytes.Buffer
	zw, err := gzip.NewWriterLevel(&archive, gzip.NoCompression) // does not depend on the version of Go
	if err != nil {
		return nil, err
	}
	tw := tar.NewWriter(zw)
	for _, f := range files {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.content))}); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(tw, f.content); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	if err := zw.Close(); err != nil {
		return nil, err
	}
	return archive.Bytes(), nil
}

// descriptor is the content of a blob with its media type.
type descriptor struct {
	mediaType types.MediaType
	content   []byte
}

// referral makes an artifact a referrer.
type referral struct {
	subject      *v1.Descriptor
	artifactType types.MediaType
}

// artifact is an OCI manifest with blobs of any media type.
type artifact struct {
	manifest, config []byte
	layers           map[v1.Hash]v1.Layer
}

// newArtifact returns an image whose config and layers are not those of a container image.
func newArtifact(config descriptor, layers []descriptor, r *referral) (v1.Image, error) {
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	if r != nil {
		manifest.Subject, manifest.ArtifactType = r.subject, string(r.artifactType)
	}
	hash, size, err := v1.SHA256(bytes.NewReader(config.content))
	if err != nil {
		return nil, err
	}
	manifest.Config = v1.Descriptor{MediaType: config.mediaType, Digest: hash, Size: size}
	a := &artifact{config: config.content, layers: map[v1.Hash]v1.Layer{}}
	for _, layer := range layers {
		hash, size, err := v1.SHA256(bytes.NewReader(layer.content))
		if err != nil {
			return nil, err
		}
		manifest.Layers = append(manifest.Layers, v1.Descriptor{MediaType: layer.mediaType, Digest: hash, Size: size})
		a.layers[hash] = static.NewLayer(layer.content, layer.mediaType)
	}
	if a.manifest, err = json.Marshal(manifest); err != nil {
		return nil, err
	}
	return partial.CompressedToImage(a)
}

func (a *artifact) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }
func (a *artifact) RawManifest() ([]byte, error)        { return a.manifest, nil }
func (a *artifact) RawConfigFile() ([]byte, error)      { return a.config, nil }

func (a *artifact) LayerByDigest(hash v1.Hash) (partial.CompressedLayer, error) {
	layer, ok := a.layers[hash]
	if !ok {
		return nil, fmt.Errorf("artifact has no layer %s", hash)
	}
	return layer, nil
}

// digests returns the digests of all content of an image, with its referrers. A digest can occur more than once.
func (i image) digests() ([]string, error) {
	var digests []string
	for _, referrer := range i.referrers {
		of, err := imageDigests(referrer)
		if err != nil {
			return nil, err
		}
		digests = append(digests, of...)
	}
	if image, ok := i.artifact.(v1.Image); ok {
		of, err := imageDigests(image)
		return append(digests, of...), err
	}
	index := i.artifact.(v1.ImageIndex)
	digest, err := index.Digest()
	if err != nil {
		return nil, err
	}
	digests = append(digests, digest.String())
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	for _, member := range manifest.Manifests {
		image, err := index.Image(member.Digest)
		if err != nil {
			return nil, err
		}
		of, err := imageDigests(image)
		if err != nil {
			return nil, err
		}
		digests = append(digests, of...)
	}
	return digests, nil
}

func imageDigests(image v1.Image) ([]string, error) {
	digest, err := image.Digest()
	if err != nil {
		return nil, err
	}
	manifest, err := image.Manifest()
	if err != nil {
		return nil, err
	}
	digests := []string{digest.String(), manifest.Config.Digest.String()}
	for _, layer := range manifest.Layers {
		digests = append(digests, layer.Digest.String())
	}
	return digests, nil
}

func TestImagesAreTheSameInEachRun(t *testing.T) {
	t.Parallel()
	digests := func() []string {
		all, err := testImages()
		if err != nil {
			t.Fatal(err)
		}
		var digests []string
		for _, i := range all {
			of, err := i.digests()
			if err != nil {
				t.Fatal(err)
			}
			digests = append(digests, i.name+": "+strings.Join(of, " "))
		}
		return digests
	}
	first, second := digests(), digests()
	if !slices.Equal(first, second) {
		t.Errorf("images of two runs differ:\n%s\n%s", strings.Join(first, "\n"), strings.Join(second, "\n"))
	}
}
