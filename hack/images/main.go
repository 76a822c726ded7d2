// SPDX-License-Identifier: Apache-2.0

// Command images writes the product's OCI images as archives, from static binaries, without a container engine.
//
//	images --binaries bin --output bin/images [--tag v0.1.0] [IMAGE...]
//
// It prints one line per image: the reference and the archive. Without the names of images it writes all of them. Without
// --tag the tag is derived from the content, so that another program is another reference.
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

// published is where the images are published.
const published = "ghcr.io/registry-cache/"

// nonRoot is the user and group of both programs; the charts and the cache's StatefulSet name the same number.
const nonRoot = "65532:65532"

// images are the names of the images, and of the program that each of them holds.
var images = []string{"gardener-extension-registry-cache", "registry-cache", distribution}

// distribution is the stock registry. In contrast to our own programs, which carry the public roots, it reads them from a
// file.
const distribution = "distribution"

// rootsFile is the first file in which Go looks for roots on Linux.
const rootsFile = "/etc/ssl/certs/ca-certificates.crt"

func main() {
	from := flag.String("binaries", "bin", "folder of the static binaries")
	output := flag.String("output", filepath.Join("bin", "images"), "folder for the archives, made if missing")
	tag := flag.String("tag", "", "tag of the images; default: derived from the content")
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
			return fmt.Errorf("no image is called %q, want some of %s", name, strings.Join(images, ", "))
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
			return fmt.Errorf("building the image of %s (make build makes the binaries): %w", binary, err)
		}
		digest, err := img.Digest()
		if err != nil {
			return err
		}
		reference := published + binary + ":" + cmp.Or(tag, digest.Hex[:12])
		archive := filepath.Join(output, binary+".tar")
		if err := ociimage.WriteArchive(archive, map[string]v1.Image{reference: img}); err != nil {
			return err
		}
		fmt.Println(reference, archive)
	}
	return nil
}

// publicRoots are the roots that our own programs carry, in PEM. Those which are trusted for some certificates only are
// left out, because a file cannot tell that.
func publicRoots() []byte {
	var pemFile bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			pem.Encode(&pemFile, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}) // a buffer takes everything
		}
	}
	return pemFile.Bytes()
}
