// SPDX-License-Identifier: Apache-2.0

package download

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

// throughBuffer is the size of the buffer for the first bytes of a response, in bytes.
const throughBuffer = 4 << 10

// through is a response of the upstream that bypasses the volume. A response from byte 0 on is verified: if its size is
// known, Read withholds the last bytes until the digest is correct; otherwise it returns an error instead of io.EOF. The
// client of any other range verifies the digest itself, as without a cache.
type through struct {
	*upstream.Blob
	body   *bufio.Reader // of the blob
	digest digest.Digest
	offset int64
	hash   digest.Digester // nil if the digest cannot be verified here
	end    int64           // the requested one, 0 for that of the blob
	cancel context.CancelCauseFunc
}

// Close ends the response.
func (t *through) Close() error {
	defer t.cancel(nil)
	return t.Blob.Close()
}

// openThrough requests the bytes of the part, whose end is only a limit of the request: the response can have more. It returns an error if limit ends before the first of these bytes has
// arrived. Afterwards the response lives until it is closed or ctx ends.
func openThrough(ctx, limit context.Context, u Upstream, repository string, d digest.Digest, part upstream.Range, size int64) (*through, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(limit, func() { cancel(context.Cause(limit)) })
	t, err := requestThrough(ctx, u, repository, d, part, size)
	if err != nil {
		stop()
		defer cancel(nil) // after orCause, for which this is no cause
		return nil, orCause(ctx, err)
	}
	t.cancel = cancel
	if !stop() {
		return nil, errors.Join(context.Cause(limit), t.Close())
	}
	return t, nil
}

func requestThrough(ctx context.Context, u Upstream, repository string, d digest.Digest, part upstream.Range, size int64) (*through, error) {
	offset := part.Offset
	blob, err := u.Blob(ctx, repository, d, part)
	if failure, ok := errors.AsType[*upstream.Error](err); ok && failure.RefusesRange() && part != (upstream.Range{}) {
		blob, err = u.Blob(ctx, repository, d, upstream.Range{})
	}
	if err != nil {
		return nil, err
	}
	if size >= 0 && blob.Size >= 0 && blob.Size != size {
		err = &upstream.Error{Op: "GET " + d.String(), Err: fmt.Errorf("the response states a size of %d bytes, want %d", blob.Size, size)}
		return nil, errors.Join(err, blob.Close())
	}
	// An upstream without ranges sends the bytes before the offset, too.
	if _, err := io.CopyN(io.Discard, blob, offset-blob.Offset); err != nil {
		return nil, errors.Join(err, blob.Close())
	}
	t := &through{Blob: blob, body: bufio.NewReaderSize(blob, throughBuffer), digest: d, offset: offset, end: part.End}
	if _, err := t.body.Peek(1); err != nil && (err != io.EOF || blob.Size > offset) {
		return nil, errors.Join(fmt.Errorf("reading the first byte of blob %s from the upstream: %w", d, err), blob.Close())
	}
	if offset == 0 && part.End == 0 {
		t.hash = digest.SHA256.Digester()
	}
	return t, nil
}

// complete reports that the requested part was read, and is not the end of the blob.
func (t *through) complete() bool { return t.end > 0 && t.offset >= t.end }

// Read implements io.Reader.
func (t *through) Read(p []byte) (int, error) {
	n, err := t.body.Read(p)
	t.offset += int64(n)
	if t.hash == nil {
		return n, err
	}
	t.hash.Hash().Write(p[:n]) // never fails
	if ended := t.offset == t.Size || err == io.EOF; ended && t.hash.Digest() != t.digest {
		return 0, fmt.Errorf("passing blob %s through: %w", t.digest, store.ErrDigestMismatch)
	}
	return n, err
}
