// SPDX-License-Identifier: Apache-2.0

package images

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// Format is a family of media types.
type Format string

// The formats: Docker's schema 2, and that of the OCI image specification.
const (
	Docker Format = "docker"
	OCI    Format = "oci"
)

// Compression is that of layers.
type Compression string

// The compressions.
const (
	Gzip Compression = "gzip"
	Zstd Compression = "zstd"
)

func (s Spec) validateFormat() error {
	switch s.Format {
	case "", Docker, OCI:
	default:
		return fmt.Errorf("format: is %q, must be docker or oci", s.Format)
	}
	switch s.Compression {
	case "", Gzip:
	case Zstd:
		if s.Format != OCI {
			return errors.New("compression: zstd needs the format oci")
		}
	default:
		return fmt.Errorf("compression: is %q, must be gzip or zstd", s.Compression)
	}
	return nil
}

// empty returns an image of the format without layers.
func (s Spec) empty() v1.Image {
	if s.Format != OCI {
		return empty.Image
	}
	return mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
}

// compressor writes all of r to w. The content does not compress, and trying would only cost time.
type compressor func(w io.Writer, r io.Reader) error

func (s Spec) layerFormat() (compressor, types.MediaType) {
	switch {
	case s.Compression == Zstd:
		return compressZstd, types.OCILayerZStd
	case s.Format == OCI:
		return compressGzip, types.OCILayer
	default:
		return compressGzip, types.DockerLayer
	}
}

// compressGzip stores and does not deflate.
func compressGzip(w io.Writer, r io.Reader) error {
	zw, err := gzip.NewWriterLevel(w, gzip.NoCompression)
	if err != nil {
		return err
	}
	return copyAndClose(zw, r)
}

// compressZstd has one goroutine, so that none is left where a reader ends early.
func compressZstd(w io.Writer, r io.Reader) error {
	zw, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	return copyAndClose(zw, r)
}

// copyAndClose hides what else the two can do: the zstd encoder makes other frames of what it reads than of what is
// written to it, and a digest must not depend on who reads.
func copyAndClose(w io.WriteCloser, r io.Reader) error {
	if _, err := io.Copy(struct{ io.Writer }{w}, struct{ io.Reader }{r}); err != nil {
		return errors.Join(err, w.Close())
	}
	return w.Close()
}
