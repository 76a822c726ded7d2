// Command images writes the product's OCI images as archives, from static binaries, without a container engine.
//
//	images --binaries bin --output bin/images [--tag v0.1.0]
//
// It prints one line per image: the reference and the archive. Without --tag the tag is derived from the content, so
// that another program is another reference.
package main

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/registry-cache/extension/hack/ociimage"
)

// registry is where the images are published.
const registry = "ghcr.io/registry-cache/"

// nonRoot is the user and group of both programs; the charts and the cache's StatefulSet name the same number.
const nonRoot = "65532:65532"

// binaries are the programs; each is the only file of the image of its name.
var binaries = []string{"gardener-extension-registry-cache", "registry-cache"}

func main() {
	from := flag.String("binaries", "bin", "folder of the static binaries")
	output := flag.String("output", filepath.Join("bin", "images"), "folder for the archives, made if missing")
	tag := flag.String("tag", "", "tag of the images; default: derived from the content")
	flag.Parse()
	if err := run(*from, *output, *tag); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(from, output, tag string) error {
	if err := os.MkdirAll(output, 0o755); err != nil {
		return err
	}
	for _, binary := range binaries {
		path := "/" + binary
		img, err := ociimage.Build(ociimage.Config{
			Files:      []ociimage.File{{Path: path, Mode: 0o755, Source: filepath.Join(from, binary)}},
			Entrypoint: []string{path},
			User:       nonRoot,
			WorkingDir: "/",
			Labels:     map[string]string{"org.opencontainers.image.licenses": "Apache-2.0"},
		})
		if err != nil {
			return fmt.Errorf("building the image of %s (make build makes the binaries): %w", binary, err)
		}
		digest, err := img.Digest()
		if err != nil {
			return err
		}
		reference := registry + binary + ":" + cmp.Or(tag, digest.Hex[:12])
		archive := filepath.Join(output, binary+".tar")
		if err := ociimage.WriteArchive(archive, map[string]v1.Image{reference: img}); err != nil {
			return err
		}
		fmt.Println(reference, archive)
	}
	return nil
}
