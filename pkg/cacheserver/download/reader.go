// SPDX-License-Identifier: Apache-2.0

package download

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

// Reader is the view of one client on a blob that is not stored yet: the growing file of the download and, if the volume
// fails, a response of the upstream. It is used by one goroutine.
type Reader struct {
	ctx        context.Context // of the request
	download   *download
	repository string
	part       Part
	began      time.Time
	size       int64
	through    *through
	foreign    bool // another repository began the download, which may fail for that one only
	follower   bool // another request began the download
	hit        bool // no byte came from the upstream
	passed     bool // some bytes bypassed the cache
	shared     int64
	file       *volume.File    // for the kernel; nil until the first chunk
	guard      func(hung bool) // supervises file, see Guard; nil without supervision
	endGuard   func()          // of file; nil without supervision
	unreadable bool            // the kernel cannot read file

	offset int64 // guarded by the lock of the download
}

// Size returns the size of the blob in bytes, -1 if the upstream does not state it.
func (r *Reader) Size() int64 { return r.size }

// Outcome returns the origin of the content. It can change while the content is read.
func (r *Reader) Outcome() result.Outcome {
	switch {
	case r.passed:
		return result.PassThrough
	case r.hit:
		return result.Hit
	}
	return result.Miss
}

// Shared returns how many of the bytes that were read came from a download that another request began.
func (r *Reader) Shared() int64 { return r.shared }

// need returns the part of the blob that the reader still requires. The caller holds the lock of the download.
func (r *Reader) need(f facts) (need, bool) {
	if r.through != nil {
		return need{}, false
	}
	s := r.part.aligned(f.size)
	if s.End >= 0 {
		s.Start = max(s.Start, min(r.offset, s.End))
	}
	return need{s, r.follower}, true
}

// awaitStart waits until the upstream has confirmed the blob, or all requested bytes are there, at most until limit ends.
func (r *Reader) awaitStart(limit context.Context) error {
	for {
		facts, state, changed := r.download.snapshot()
		part := r.part.span(max(facts.size, 0))
		switch {
		case state.refused != nil && !state.verified:
			return state.refused
		case state.announced, state.verified, facts.size > 0 && facts.readable(part.Start, r.withholds(facts, state)) >= part.End-part.Start:
			r.size = facts.size
			r.hit = state.stored
			return nil
		case state.err != nil && (errors.Is(state.err, errStorage) || r.foreign):
			return r.passThrough(limit, r.part.firstByte(facts.size))
		case state.err != nil:
			return state.err
		}
		if err := wait(limit, changed); err != nil {
			return err
		}
	}
}

// withholds reports that the reader gets the last byte of the blob only after the digest of all bytes was verified, so that
// wrong content never looks complete: containerd repeats an incomplete layer, but gives up on a wrong one. A reader of the
// rest of the blob must not wait for bytes that it did not request, so it gets the last byte unverified if others are missing.
// Readers of other ranges verify the digest themselves when they have all of the blob.
func (r *Reader) withholds(f facts, s state) bool {
	toTheEnd := r.part.Suffix == 0 && r.part.Length == 0
	return !s.verified && toTheEnd && (r.part.complete() || !f.missing())
}

// Await waits until the byte at the offset can be read. It returns an error if that is impossible or takes too long, so
// that the client can request the blob from the upstream: after the header of a response, an error can only end the
// connection. It does not change the position of the reader. Errors are *result.Error.
func (r *Reader) Await(ctx context.Context, offset int64) error {
	if r.through != nil && r.through.offset == offset || r.size >= 0 && offset >= r.size && r.size > 0 {
		return nil
	}
	if err := r.await(ctx, offset); err != nil {
		return result.Explain(err)
	}
	return nil
}

func (r *Reader) await(ctx context.Context, offset int64) error {
	limited, cancel := r.limit(ctx)
	defer cancel()
	if r.through != nil {
		return r.passThrough(limited, offset)
	}
	// The position is the byte that the download serves first.
	position := r.offset
	r.seek(offset)
	defer r.seek(position)
	for {
		facts, state, changed := r.download.snapshot()
		switch {
		case facts.readable(offset, r.withholds(facts, state)) > 0, state.verified:
			return nil
		case errors.Is(state.err, errStorage):
			return r.passThrough(limited, offset)
		case state.err != nil:
			return state.err
		}
		if err := wait(limited, changed); err != nil {
			return err
		}
	}
}

// limit returns a context that ends when the client must have a header.
func (r *Reader) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return upstream.AnswerContext(ctx, r.began, "GET "+r.repository+"@"+r.download.digest.String())
}

// wait waits for a change of the download. It returns the cause of ctx if that ends before.
func wait(ctx context.Context, changed <-chan struct{}) error {
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Read implements io.Reader. It waits for bytes, and returns an error instead of io.EOF if the content is not complete or
// has another digest.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := r.available(int64(len(p)))
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return r.readThrough(p)
	}
	read, err := r.download.source.ReadAt(p[:n], r.offset)
	if read == 0 {
		r.download.unreadable(err)
		return r.readThrough(p)
	}
	r.advance(int64(read))
	return read, nil // an error in between is that of the next call, too
}

// available waits for bytes at the position, and returns how many there are, up to limit. 0 means that they have to be
// requested from the upstream. The error is io.EOF at the end of the blob.
func (r *Reader) available(limit int64) (int64, error) {
	for r.through == nil {
		facts, state, changed := r.download.snapshot()
		if n := facts.readable(r.offset, r.withholds(facts, state)); n > 0 {
			return min(n, limit), nil
		}
		switch {
		case state.verified:
			return 0, io.EOF
		case errors.Is(state.err, errStorage):
			return 0, nil
		case state.err != nil:
			return 0, state.err
		}
		if err := wait(r.ctx, changed); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// passThrough requests the bytes from the offset on. It returns an error if limit ends before the first of them has arrived.
// limit is r.ctx or derived from it.
func (r *Reader) passThrough(limit context.Context, offset int64) error {
	if r.through != nil {
		previous := r.through
		setThrough(r, nil)
		if err := previous.Close(); err != nil {
			return err
		}
	}
	size := r.size
	if facts, _, _ := r.download.snapshot(); size < 0 {
		size = facts.size
	}
	part := upstream.Range{Offset: offset, End: r.part.endBehind(offset, size)}
	opened, err := openThrough(r.ctx, limit, r.download.owner.upstream, r.repository, r.download.digest, part, size)
	if err != nil {
		return err
	}
	r.passed = true
	r.size = max(size, opened.Size)
	setThrough(r, opened)
	return nil
}

// setThrough sets r.through with the lock held, because the supervisor reads it in Reader.need.
func setThrough(r *Reader, t *through) {
	r.download.mu.Lock()
	defer r.download.mu.Unlock()
	r.through = t
}

// readThrough reads from a response of the upstream that begins at the position.
func (r *Reader) readThrough(p []byte) (int, error) {
	if r.through == nil || r.through.offset != r.offset || r.through.complete() {
		if err := r.passThrough(r.ctx, r.offset); err != nil {
			return 0, err
		}
	}
	n, err := r.through.Read(p)
	r.seek(r.offset + int64(n))
	if err == io.EOF && r.through.complete() {
		err = nil // the client can require more than the requested part
	}
	return n, err
}

// Chunk returns bytes from the position on as a part of a file, at most limit of them, so that the kernel can send them
// without copies. It waits for the first one, and returns nil if they have to be read with Read. Sent must be called at
// the end of its use.
func (r *Reader) Chunk(limit int64) (*io.LimitedReader, error) {
	n, err := r.available(limit)
	if err != nil || n == 0 || r.unreadable {
		return nil, err
	}
	if r.file == nil {
		incoming, ok := r.download.source.(*store.Incoming)
		if !ok {
			return nil, nil
		}
		if r.file, err = incoming.Open(); err != nil {
			return nil, nil //nolint:nilerr // Read uses the descriptor of the download
		}
		if r.guard != nil {
			r.endGuard = r.file.Guard(r.guard)
		}
	}
	if _, err := r.file.Seek(r.offset, io.SeekStart); err != nil {
		return nil, fmt.Errorf("reading blob %s: %w", r.download.digest, err)
	}
	return &io.LimitedReader{R: r.file, N: n}, nil
}

// Guard supervises the chunks while the kernel reads them, see volume.File.Guard.
func (r *Reader) Guard(check func(hung bool)) (end func()) {
	r.guard = check
	return func() {
		r.guard = nil
		if r.endGuard != nil {
			r.endGuard()
		}
	}
}

// Sent moves the position behind n bytes of the last chunk. unreadable is the error of the file if it ended the use of the
// chunk, or nil. The rest can then be read with Read.
func (r *Reader) Sent(n int64, unreadable error) {
	r.advance(n)
	if unreadable != nil {
		r.unreadable = true
		r.download.unreadable(unreadable)
	}
}

func (r *Reader) advance(n int64) {
	r.seek(r.offset + n)
	if r.follower {
		r.shared += n
	}
}

func (r *Reader) seek(offset int64) {
	r.download.mu.Lock()
	moved := offset != r.offset
	r.offset = offset
	r.download.mu.Unlock()
	if moved {
		notify(r.download.events)
	}
}

// Seek implements io.Seeker.
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.offset
	case io.SeekEnd:
		if r.size < 0 {
			return 0, errors.New("the size of the blob is unknown")
		}
		offset += r.size
	}
	if offset < 0 {
		return 0, errors.New("seeking before the first byte")
	}
	r.seek(offset)
	return offset, nil
}

// Close ends the reader; the download continues.
func (r *Reader) Close() error {
	var errs []error
	if r.through != nil {
		errs = append(errs, r.through.Close())
	}
	if r.file != nil {
		errs = append(errs, r.file.Close())
	}
	r.download.removeReader(r)
	return errors.Join(errs...)
}
