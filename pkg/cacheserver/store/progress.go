// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/oci"
)

// Progress is the state of a partial download.
type Progress struct {
	Digest digest.Digest `json:"digest"`
	// Size of the whole blob in bytes, -1 if it is unknown.
	Size int64 `json:"size"`
	// Spans are the ranges that are in the file: offsets of the first byte and of the byte behind the last one, in bytes,
	// ascending, without overlaps.
	Spans [][2]int64 `json:"spans"`
	// Repositories contain the blob, as far as the download found out. The progress must not be used for others, because
	// the upstream may deny them the blob.
	Repositories []string `json:"repositories"`
}

// bytes returns the number of bytes that are in the file.
func (p Progress) bytes() int64 {
	var n int64
	for _, span := range p.Spans {
		n += span[1] - span[0]
	}
	return n
}

func (p Progress) validate() error {
	if _, err := oci.ParseDigest(p.Digest.String()); err != nil {
		return err
	}
	end := int64(0)
	for _, span := range p.Spans {
		if span[0] < end || span[1] <= span[0] {
			return errors.New("its spans are not ascending")
		}
		end = span[1]
	}
	if p.Size >= 0 && end > p.Size {
		return errors.New("its spans exceed its size")
	}
	return nil
}
