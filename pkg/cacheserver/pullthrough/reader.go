// SPDX-License-Identifier: Apache-2.0

package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

const (
	// awaitTimeout is less than the 30 s in which containerd wants the header of an answer (from 2.3 on), and more than
	// an upstream may be silent for.
	awaitTimeout = 20 * time.Second
	// aheadTimeout is how long a reader waits for a fetch that must get other bytes first, which nobody may need.
	aheadTimeout = 5 * time.Second
)

// reader is one client's view of a blob that is not stored yet: the growing file of a fetch, and behind what that
// could store the upstream itself.
type reader struct {
	// ctx is the client's request, which the reader is a part of.
	ctx        context.Context
	cache      *Cache
	repository string
	digest     digest.Digest
	fetch      *fetch
	size       int64
	offset     int64
	through    *throughReader // nil until bytes are passed through
	foreign    bool           // another repository began the fetch, which may fail for that one alone
	hit        bool           // nothing had to come from the upstream
	follower   bool           // another request began the fetch
	shared     int64          // bytes that a follower got from the fetch
	passed     bool           // something was passed through
}

// open waits for the first bytes and learns the size.
func (r *reader) open() error {
	state, err := r.fetch.await(r.ctx, 0)
	switch {
	case err != nil:
		return err
	case state.err == nil || state.readable() > 0:
		r.size = state.size
		if state.verified {
			r.size = state.written
		}
		r.hit = r.hit || state.stored
		return nil
	case errors.Is(state.err, errStorage), r.foreign:
		return r.passThrough(0)
	}
	return state.err
}

// await waits for the byte at the offset, see Blob.Await. It does not change where reading begins.
func (r *reader) await(ctx context.Context, offset int64) error {
	if r.through != nil || r.size >= 0 && offset >= r.size {
		return nil
	}
	timeout := awaitTimeout
	ahead := r.fetch.progress().readable() < offset
	if ahead {
		timeout = aheadTimeout
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	state, err := r.fetch.await(limited, offset)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case state.readable() > offset, err != nil && !ahead:
		return nil
	case err != nil, errors.Is(state.err, errStorage):
		return r.passThrough(offset)
	}
	return state.err
}

func (r *reader) outcome() result.Outcome {
	if r.passed {
		return result.PassThrough
	}
	if r.hit {
		return result.Hit
	}
	return result.Miss
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if r.through == nil {
		state, err := r.fetch.await(r.ctx, r.offset)
		if err != nil {
			return 0, err
		}
		if left := state.readable() - r.offset; left > 0 {
			n, err := r.fetch.source().ReadAt(p[:min(int64(len(p)), left)], r.offset)
			r.offset += int64(n)
			if r.follower {
				r.shared += int64(n)
			}
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("reading blob %s: %w", r.digest, io.ErrUnexpectedEOF)
			}
			return n, err
		}
		switch {
		case state.verified:
			return 0, io.EOF
		case !errors.Is(state.err, errStorage):
			return 0, state.err
		}
	}
	if r.through == nil || r.through.offset != r.offset {
		if err := r.passThrough(r.offset); err != nil {
			return 0, err
		}
	}
	n, err := r.through.Read(p)
	r.offset += int64(n)
	return n, err
}

// Seek implements io.Seeker.
func (r *reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.offset
	case io.SeekEnd:
		if r.size < 0 {
			return 0, errors.New("the size of the blob is not known")
		}
		offset += r.size
	}
	if offset < 0 {
		return 0, errors.New("seeking before the first byte")
	}
	r.offset = offset
	return offset, nil
}

// Close ends the client's part; the fetch goes on.
func (r *reader) Close() error {
	var err error
	if r.through != nil {
		err = r.through.Close()
	}
	r.cache.release(r.fetch)
	return err
}

// passThrough asks the upstream for the bytes from the offset on.
func (r *reader) passThrough(offset int64) error {
	if r.through != nil {
		previous := r.through
		r.through = nil
		if err := previous.Close(); err != nil {
			return err
		}
	}
	blob, err := r.cache.blobFrom(r.ctx, r.repository, r.digest, upstream.Range{Offset: offset})
	if err != nil {
		return err
	}
	r.passed = true
	if r.size < 0 {
		// An answer with a part may not tell the size of the whole.
		r.size = blob.Size
	}
	r.through = &throughReader{Blob: blob, digest: r.digest, offset: offset}
	if offset == 0 {
		r.through.hash = digest.SHA256.Digester()
	}
	return nil
}

// throughReader reads from the upstream. If it began with the first byte, the last one is given out only if all of
// them have the digest; otherwise that is left to the client, as without a cache.
type throughReader struct {
	*upstream.Blob
	digest digest.Digest
	offset int64
	hash   digest.Digester // nil where it cannot be told
}

func (t *throughReader) Read(p []byte) (int, error) {
	n, err := t.Blob.Read(p)
	if t.hash != nil && n > 0 {
		if _, err := t.hash.Hash().Write(p[:n]); err != nil {
			return 0, err
		}
	}
	t.offset += int64(n)
	ended := t.offset == t.Size || err == io.EOF
	if ended && t.hash != nil && t.hash.Digest() != t.digest {
		return 0, fmt.Errorf("passing blob %s through: %w", t.digest, store.ErrDigestMismatch)
	}
	return n, err
}
