// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// layer is a compressed tar archive of one pseudo-random file. It implements v1.Layer and is safe for concurrent use.
type layer struct {
	key            [32]byte
	fileSize, size int64
	header         []byte
	compress       compressor
	mediaType      types.MediaType
	digest, diffID v1.Hash
}

func newLayer(s Spec, i int, fileSize int64) (*layer, error) {
	var header bytes.Buffer
	tw := tar.NewWriter(&header)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("layer-%03d", i), Mode: 0o644, Size: fileSize}); err != nil {
		return nil, err
	}
	l := &layer{
		key:      sha256.Sum256(fmt.Appendf(nil, "%d/%s/%s/%d", s.Seed, s.Architecture, s.Variant, i)),
		fileSize: fileSize,
		header:   header.Bytes(),
	}
	l.compress, l.mediaType = s.layerFormat()
	digest, diffID := sha256.New(), sha256.New()
	size := new(counter)
	if err := l.compress(io.MultiWriter(digest, size), io.TeeReader(l.archive(), diffID)); err != nil {
		return nil, err
	}
	l.size = int64(*size)
	l.digest = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(digest.Sum(nil))}
	l.diffID = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(diffID.Sum(nil))}
	return l, nil
}

func (l *layer) Digest() (v1.Hash, error)             { return l.digest, nil }
func (l *layer) DiffID() (v1.Hash, error)             { return l.diffID, nil }
func (l *layer) Size() (int64, error)                 { return l.size, nil }
func (l *layer) MediaType() (types.MediaType, error)  { return l.mediaType, nil }
func (l *layer) Uncompressed() (io.ReadCloser, error) { return io.NopCloser(l.archive()), nil }

// Compressed returns a reader that the caller must close, or the goroutine behind it stays.
func (l *layer) Compressed() (io.ReadCloser, error) {
	r, w := io.Pipe()
	go func() { w.CloseWithError(l.compress(w, l.archive())) }()
	return r, nil
}

// archive returns the tar archive: a sequence of 512-byte blocks that ends with two blocks of zeros (POSIX pax).
func (l *layer) archive() io.Reader {
	end := make([]byte, (512-l.fileSize%512)%512+1024)
	return io.MultiReader(bytes.NewReader(l.header), io.LimitReader(rand.NewChaCha8(l.key), l.fileSize), bytes.NewReader(end))
}

// counter counts the bytes written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
