// SPDX-License-Identifier: Apache-2.0

package images

import "fmt"

// References of the images that every upstream of the testbed offers.
const (
	// Alpine has the shape of the small image of the user's document: an index, and one layer of 2.8 MB.
	Alpine = "docker.io/library/alpine:3.13.2"
	// OpsToolbelt has the shape of the large one: ten layers, 240 MB. One manifest and ten layers at three downloads
	// at a time are the six requests of 30 s that its 3 min 10 s against a dead address are made of.
	OpsToolbelt = "eu.gcr.io/gardener-project/gardener/ops-toolbelt:0.18.0"
	// SampleGHCR, SampleQuay and SampleKubernetes run a program that prints one line and waits for a signal.
	SampleGHCR = "ghcr.io/registry-cache/sample:v1"
	SampleQuay = "quay.io/registry-cache/sample:v1"
	// SampleKubernetes is from the registry of the cluster's own images.
	SampleKubernetes = "registry.k8s.io/registry-cache/sample:v1"
	// TinyDocker, TinyGHCR and TinyQuay are one layer of 64 KiB, for what is about requests and not about bytes.
	TinyDocker = "docker.io/registrycache/tiny:v1"
	TinyGHCR   = "ghcr.io/registry-cache/tiny:v1"
	TinyQuay   = "quay.io/registry-cache/tiny:v1"
)

// Entry is one tag of the catalogue.
type Entry struct {
	// Reference is "host/repository:tag".
	Reference string
	// Build makes what the tag names.
	Build func() (Artifact, error)
}

// Catalogue returns what every upstream of the testbed offers, in the order of their sizes. Program is the path of a
// static program for the sample images; where it is empty, these are left out.
func Catalogue(program string) []Entry {
	entries := []Entry{
		{TinyDocker, image(Spec{Seed: 11, LayerSizes: []int64{64 << 10}})},
		{TinyGHCR, image(Spec{Seed: 12, LayerSizes: []int64{64 << 10}})},
		{TinyQuay, image(Spec{Seed: 13, LayerSizes: []int64{64 << 10}})},
	}
	if program != "" {
		for _, reference := range []string{SampleGHCR, SampleQuay, SampleKubernetes} {
			entries = append(entries, Entry{reference, func() (Artifact, error) { return Runnable(program, reference) }})
		}
	}
	return append(entries, Entry{Alpine, alpine}, Entry{OpsToolbelt, image(opsToolbelt())})
}

// Lookup returns the entry of the catalogue with the given reference.
func Lookup(catalogue []Entry, reference string) (Entry, error) {
	for _, entry := range catalogue {
		if entry.Reference == reference {
			return entry, nil
		}
	}
	return Entry{}, fmt.Errorf("image %s is not in the catalogue", reference)
}

func image(s Spec) func() (Artifact, error) {
	return func() (Artifact, error) { return Generate(s) }
}

// alpine lists the platforms of the original. Only those on which a testbed can run have its size.
func alpine() (Artifact, error) {
	const full, small = 2_800_000, 4 << 10
	spec := func(architecture, variant string, size int64) Spec {
		return Spec{Seed: 1, LayerSizes: []int64{size}, Architecture: architecture, Variant: variant}
	}
	return Index(
		spec("amd64", "", full), spec("arm", "v6", small), spec("arm", "v7", small), spec("arm64", "v8", full),
		spec("386", "", small), spec("ppc64le", "", small), spec("s390x", "", small),
	)
}

func opsToolbelt() Spec { return Spec{Seed: 2, LayerSizes: OpsToolbeltLayers()} }

// OpsToolbeltLayers are the sizes of the layers of OpsToolbelt, in bytes: a base image, package installations and small
// files on top.
func OpsToolbeltLayers() []int64 {
	return []int64{31_400_000, 58_200_000, 44_000_000, 300_000, 72_000_000, 12_000_000, 18_500_000, 2_400_000, 1_100_000, 100_000}
}
