// SPDX-License-Identifier: Apache-2.0

package download

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

const (
	// transferBuffer is the maximum number of bytes of one write to the volume. 128 transfers at the same time need 16 MiB.
	transferBuffer = 128 << 10
	// maxRecord is more than the size of a TLS record, in bytes (RFC 8446, section 5.2). If as much is in the receive buffer
	// of a connection, a Read does not block.
	maxRecord = 17 << 10
	// accountStep is the number of bytes for which space is reserved at once, if not for the whole blob.
	accountStep = 1 << 20
)

// errObsolete ends a transfer if another transfer receives its bytes.
var errObsolete = errors.New("another transfer receives these bytes")

// transfer is one response of the upstream on its way to the file. The fields behind done are guarded by the lock of the
// download.
type transfer struct {
	download *download
	incoming *store.Incoming
	ranged   bool // the request has a range
	began    time.Time
	cancel   context.CancelCauseFunc
	done     func() // called at the end

	// replaces is a slow transfer that is still running, for the same bytes; replacement is the reverse.
	replaces, replacement *transfer
	additional            bool // was started to replace another one
	obsolete              bool // was canceled, because another one receives its bytes
	beside                bool // received its first byte while another one was receiving, so the upstream permits several

	next     int64 // the next byte to receive
	end      int64 // the limit, -1 while the size is unknown
	received int64
	fresh    int64 // those of the received bytes that were missing
	lastByte time.Time
	writing  bool // to the volume; the upstream is not responsible for the time that this takes
	meter    meter
	waited   meter     // nanoseconds for the upstream, since the first byte
	firstAt  time.Time // of the first byte
}

func newTransfer(d *download, incoming *store.Incoming, part Span, now time.Time) *transfer {
	return &transfer{
		download: d,
		incoming: incoming,
		began:    now,
		done:     func() {},
		next:     part.Start,
		end:      part.End,
		meter:    newMeter(now),
		waited:   newMeter(now),
	}
}

// flow returns the state for the next decision. The caller holds the lock.
func (t *transfer) flow(now time.Time) flow {
	var header time.Duration
	if !t.firstAt.IsZero() {
		header = t.firstAt.Sub(t.began)
	}
	return flow{
		Span:        Span{t.next, t.end},
		began:       t.began,
		header:      header,
		lastByte:    t.active(now),
		rate:        t.meter.rate(now),
		waits:       min(time.Duration(t.waited.rate(now)).Seconds(), 1),
		replaced:    t.replacement != nil || t.replaces != nil,
		replacement: t.additional,
	}
}

// active returns when the transfer last made progress, as far as that depends on the upstream; zero before the first byte.
// The caller holds the lock.
func (t *transfer) active(now time.Time) time.Time {
	if t.writing {
		return now
	}
	return t.lastByte
}

// abandon ends the transfer, because another one receives its bytes. The caller holds the lock.
func (t *transfer) abandon() {
	t.obsolete = true
	t.cancel(errObsolete)
}

// run requests the bytes and writes them to the file. It returns nil when all of them are there, and errObsolete, an
// *upstream.Error, an error of the volume or the cause of the context otherwise.
func (t *transfer) run(ctx context.Context) (err error) {
	part, repository := t.part()
	blob, err := t.request(ctx, repository, part)
	if err != nil {
		return orCause(ctx, err)
	}
	defer func() { _ = blob.Close() }() // the bytes were read, or are not required any more
	if err := t.reserve(ctx, blob.Size); err != nil {
		return err
	}
	if err := t.accept(blob); err != nil {
		return err
	}
	return orCause(ctx, t.copy(ctx, blob))
}

// orCause returns the cause of a context that was canceled on purpose instead of the error that this caused.
func orCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// request sends the request. An upstream that is a cache itself may have to import the blob first.
func (t *transfer) request(ctx context.Context, repository string, part upstream.Range) (*upstream.Blob, error) {
	d := t.download
	blob, err := d.owner.upstream.Blob(ctx, repository, d.digest, part)
	if failed, ok := errors.AsType[*upstream.Error](err); !ok || !failed.NotFound() {
		return blob, err
	}
	requested, importErr := d.owner.options.Import(ctx, repository, d.digest)
	if !requested || importErr != nil {
		return nil, err
	}
	return d.owner.upstream.Blob(ctx, repository, d.digest, part)
}

// part returns the requested part, and the repository.
func (t *transfer) part() (upstream.Range, string) {
	d := t.download
	d.mu.Lock()
	defer d.mu.Unlock()
	part := upstream.Range{Offset: t.next}
	if t.end > 0 && (d.facts.size < 0 || t.end < d.facts.size) {
		part.End = t.end
	}
	t.ranged = part.Offset > 0 || part.End > 0
	return part, d.repositories[0]
}

// reserve reserves the space for a blob that is downloaded completely, once. A full volume is detected before readers
// receive any byte. size is that of the response, in bytes.
func (t *transfer) reserve(ctx context.Context, size int64) error {
	d := t.download
	d.space.Lock()
	defer d.space.Unlock()
	d.mu.Lock()
	size = max(size, d.facts.size)
	due := d.facts.complete && !d.reserved && size > 0
	d.mu.Unlock()
	if !due {
		return nil
	}
	if err := t.incoming.Reserve(ctx, size); err != nil {
		return t.noSpace(ctx, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reserved = true
	return nil
}

// account reserves space for the next n bytes of a blob that is not downloaded completely, or whose size is unknown, in
// steps.
func (t *transfer) account(ctx context.Context, n int64) error {
	d := t.download
	d.mu.Lock()
	d.written += n
	due := t.unaccounted() > 0
	d.mu.Unlock()
	if !due {
		return nil
	}
	d.space.Lock()
	defer d.space.Unlock()
	d.mu.Lock()
	total := t.unaccounted() // another transfer may have reserved it
	d.mu.Unlock()
	if total == 0 {
		return nil
	}
	if err := t.incoming.Account(ctx, total); err != nil {
		return t.noSpace(ctx, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.accounted = total
	return nil
}

// unaccounted returns the number of bytes for which space must be reserved, 0 if that was done. The caller holds the lock.
func (t *transfer) unaccounted() int64 {
	d := t.download
	if d.reserved || d.written <= d.accounted {
		return 0
	}
	return (d.written + accountStep - 1) / accountStep * accountStep
}

// noSpace handles the error of a reservation. The end of the transfer, which ends the wait for space, is no problem of the
// volume.
func (t *transfer) noSpace(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return t.download.unstorable(err)
}

// accept checks the header of the response and copies its statements to the facts.
func (t *transfer) accept(blob *upstream.Blob) error {
	d := t.download
	d.mu.Lock()
	defer d.mu.Unlock()
	if blob.RateLimited {
		d.facts.speedup = d.facts.speedup.limit()
	}
	if blob.Size >= 0 && d.facts.size >= 0 && blob.Size != d.facts.size {
		err := t.unusable(fmt.Errorf("the response states a size of %d bytes, want %d", blob.Size, d.facts.size))
		if d.state.announced {
			return err
		}
		d.restart()
		if d.expected >= 0 {
			// No reader gets these bytes. But the manifest may be wrong, so that the digest decides for later readers.
			d.state.refused = err
			d.facts.complete = true
		}
		t.end = -1
	}
	if blob.Size >= 0 {
		d.facts.size = blob.Size
	}
	if blob.Ranges && t.ranged && max(blob.Size, d.facts.size) < 0 {
		return t.unusable(upstream.ErrRange) // no range that a client requires can be sent without the size
	}
	if blob.Offset != t.next && len(d.transfers) > 1 {
		return t.unusable(upstream.ErrRange) // it would repeat the bytes of another transfer
	}
	switch {
	case t.ranged && (blob.Offset != t.next || !blob.Ranges):
		// The upstream sends all of the blob anyway.
		d.facts.withoutRanges()
		d.facts.complete, t.end = true, -1
	case d.facts.ranges == unknown && blob.Ranges:
		d.facts.ranges = yes
	}
	t.next = blob.Offset
	switch {
	case t.end < 0:
		t.end = d.facts.size
	case d.facts.size >= 0:
		t.end = min(t.end, d.facts.size)
	}
	d.state.announced = true
	d.broadcast()
	return nil
}

// copy writes the body to the file up to the limit.
func (t *transfer) copy(ctx context.Context, body *upstream.Blob) error {
	buffer := make([]byte, transferBuffer)
	for {
		n, waited, readErr := fill(body, buffer)
		skip, keep, ended := t.claim(int64(n), waited)
		if keep > skip {
			if err := t.account(ctx, keep-skip); err != nil {
				return err
			}
			if _, err := t.incoming.WriteAt(buffer[skip:keep], t.next+skip); err != nil {
				return t.download.unstorable(err)
			}
		}
		t.wrote(keep)
		if ended {
			return nil
		}
		switch {
		case readErr == io.EOF:
			return t.atEOF()
		case readErr != nil:
			return readErr
		}
	}
}

// fill reads until the next Read could block. A Read returns at most one TLS record, for which a write to the volume is
// expensive. waited is the time that was spent for the upstream: none if the receive buffer contains bytes anyway, because
// this process, or the processor, is slower than the upstream.
func fill(body *upstream.Blob, buffer []byte) (n int, waited time.Duration, err error) {
	queued, began := body.Queued(), time.Now()
	n, err = body.Read(buffer)
	if queued < maxRecord {
		waited = time.Since(began)
	}
	for err == nil && n < len(buffer) && body.Queued() >= maxRecord {
		var more int
		more, err = body.Read(buffer[n:])
		n += more
	}
	return n, waited, err
}

// claim returns which of the n bytes that were read belong to this transfer and are still missing: those from skip up to
// keep. ended reports that the limit is reached.
func (t *transfer) claim(n int64, waited time.Duration) (skip, keep int64, ended bool) {
	d := t.download
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	if n > 0 {
		if t.firstAt.IsZero() {
			t.firstAt, t.beside = now, slices.ContainsFunc(d.transfers, func(other *transfer) bool { return other != t && !other.firstAt.IsZero() })
			t.takeOver()
		} else {
			t.waited.add(int64(waited), now)
		}
		t.received += n
		t.lastByte, t.writing = now, true
		t.meter.add(n, now)
	}
	keep = n
	if t.end >= 0 && t.next+n >= t.end {
		keep, ended = max(t.end-t.next, 0), true
	}
	skip = min(d.facts.have.endAt(t.next)-t.next, keep)
	t.fresh += keep - skip
	if n > 0 && skip == keep {
		t.compete(now)
	}
	return skip, keep, ended
}

// takeOver ends the transfer that would receive the next missing byte of this one there, because this one has received its
// first byte. Until then the other one continues, because the upstream may refuse this one or need long for its header. If
// the other one has passed the first byte meanwhile, this one ends instead. The caller holds the lock.
func (t *transfer) takeOver() {
	missing := t.download.facts.have.endAt(t.next)
	for _, other := range t.download.transfers {
		switch {
		case other == t || other == t.replaces || other == t.replacement || !(Span{other.next, other.end}).contains(missing):
		case missing == t.next:
			other.end = missing
		default:
			t.abandon()
		}
	}
}

// compete ends one of two transfers for the same bytes, after this one has received bytes that the other one received
// before: the slower one. Until then both are kept, because a connection can be as slow as the one that it replaces, and
// the download must not be slower than a client without the cache, which keeps its connection.
func (t *transfer) compete(now time.Time) {
	rival := t.replacement
	if rival == nil {
		rival = t.replaces
	}
	switch {
	case rival == nil || rival.obsolete || t.obsolete:
	case now.Sub(rival.active(now)) < stalledAfter:
		t.abandon()
	default:
		rival.abandon()
	}
}

// wrote notes that the next n bytes are in the file.
func (t *transfer) wrote(n int64) {
	d := t.download
	d.mu.Lock()
	defer d.mu.Unlock()
	d.facts.have.add(Span{t.next, t.next + n})
	t.next += n
	if t.writing {
		t.lastByte, t.writing = time.Now(), false
	}
	if n > 0 {
		d.grow()
	}
}

// atEOF ends a body before the limit: an error, unless only now the size is known.
func (t *transfer) atEOF() error {
	d := t.download
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.facts.size < 0:
		d.facts.size, t.end = t.next, t.next
		d.broadcast()
		return nil
	case t.next == t.end:
		return nil
	}
	return t.unusable(fmt.Errorf("%w after %d bytes, at %d of %d", io.ErrUnexpectedEOF, t.received, t.next, d.facts.size))
}

func (t *transfer) unusable(err error) error {
	return &upstream.Error{Op: http.MethodGet + " " + t.download.digest.String(), Err: err}
}
