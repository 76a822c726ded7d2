// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/registry-cache/extension/hack/containerd-pull/internal/discard"
)

// discardStore adapts discard.Store to the content interfaces of containerd 2.x.
type discardStore struct{ store discard.Store }

func (s *discardStore) Writer(_ context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	isManifest := images.IsManifestType(o.Desc.MediaType) || images.IsIndexType(o.Desc.MediaType)
	w, err := s.store.Writer(o.Ref, o.Desc, isManifest)
	if err != nil {
		return nil, err
	}
	return writer{w}, nil
}

func (s *discardStore) ReaderAt(_ context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	return s.store.Reader(d)
}

type writer struct{ *discard.Writer }

func (w writer) Status() (content.Status, error) {
	return content.Status{Ref: w.Ref, Offset: w.Offset, Total: w.Total}, nil
}

func (w writer) Commit(_ context.Context, size int64, expected digest.Digest, _ ...content.Opt) error {
	return w.Writer.Commit(size, expected)
}
