// SPDX-License-Identifier: Apache-2.0

// Command images builds the product's OCI images from static binaries, without a container engine, and writes them as
// archives.
//
//	images --binaries bin --output bin/images [--tag v0.1.0] [IMAGE...]
//
// IMAGE is the name of an image; by default, all images are built. For each image, the command prints one line with the
// reference and the path of the archive. Without --tag, the tag is derived from the content, so that a changed program
// gets a new reference.
package main

import (
	"bytes"
	"cmp"
	"encoding/pem"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/crypto/x509roots/fallback/bundle"

	"github.com/registry-cache/extension/hack/ociimage"
)

// repositoryPrefix is the registry and path under which the images are published.
const repositoryPrefix = "ghcr.io/registry-cache/"

// nonRoot is the "uid:gid" of all programs. The charts and the StatefulSet of a cache set the same numbers.
const nonRoot = "65532:65532"

// images are the names of the images. Each image contains one program with the same name.
var images = []string{"gardener-extension-registry-cache", "registry-cache", distribution}

// distribution is the stock registry. The other programs contain the public root certificates; the stock registry reads
// them from rootsFile.
const distribution = "distribution"

// rootsFile is the first path at which Go looks for root certificates on Linux.
const rootsFile = "/etc/ssl/certs/ca-certificates.crt"

func main() {
	from := flag.String("binaries", "bin", "`directory` of the static binaries")
	output := flag.String("output", filepath.Join("bin", "images"), "`directory` for the archives, created if missing")
	tag := flag.String("tag", "", "`tag` of the images (default: derived from the content)")
	flag.Parse()
	if err := run(*from, *output, *tag, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(from, output, tag string, names []string) error {
	if len(names) == 0 {
		names = images
	}
	for _, name := range names {
		if !slices.Contains(images, name) {
			return fmt.Errorf("unknown image %q, must be one of %s", name, strings.Join(images, ", "))
		}
	}
	if err := os.MkdirAll(output, 0o755); err != nil {
		return err
	}
	for _, binary := range names {
		path := "/" + binary
		files := []ociimage.File{{Path: path, Mode: 0o755, Source: filepath.Join(from, binary)}}
		if binary == distribution {
			files = append(files, ociimage.File{Path: rootsFile, Content: publicRoots()})
		}
		img, err := ociimage.Build(ociimage.Config{
			Files:      files,
			Entrypoint: []string{path},
			User:       nonRoot,
			WorkingDir: "/",
			Labels:     map[string]string{"org.opencontainers.image.licenses": "Apache-2.0"},
		})
		if err != nil {
			return fmt.Errorf("building image %s (\"make build\" creates the binaries): %w", binary, err)
		}
		digest, err := img.Digest()
		if err != nil {
			return err
		}
		reference := repositoryPrefix + binary + ":" + cmp.Or(tag, digest.Hex[:12])
		archive := filepath.Join(output, binary+".tar")
		if err := ociimage.WriteArchive(archive, map[string]v1.Image{reference: img}); err != nil {
			return err
		}
		fmt.Println(reference, archive)
	}
	return nil
}

// publicRoots returns the root certificates that the other programs contain, in PEM. Roots with a constraint, which are
// trusted for certain certificates only, are omitted, because a PEM file cannot express the constraint.
func publicRoots() []byte {
	var pemFile bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			pemFile.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}))
		}
	}
	return pemFile.Bytes()
}
