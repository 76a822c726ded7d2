// SPDX-License-Identifier: Apache-2.0

package download

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/background"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

const (
	// tick is how often a running download reconsiders its transfers, which can become slow without any event.
	tick = 250 * time.Millisecond
	// recordInterval is the time between two records of the progress. A crash repeats the transfers since the last one.
	recordInterval = 10 * time.Second
	// busyPause is the time between two attempts to get a turn for a request to the upstream.
	busyPause = 500 * time.Millisecond
	// hashBuffer is the number of bytes that are hashed between two checks of the state.
	hashBuffer = 128 << 10
)

// run downloads the blob: it is the supervisor.
func (d *download) run(ctx context.Context) {
	defer d.release()
	defer d.owner.remove(d)
	if d.serveStored() {
		return
	}
	incoming := d.receive()
	if incoming == nil {
		return
	}
	transferring, cancel := context.WithCancel(ctx)
	d.work.Go(func() { d.hash(transferring, incoming) })
	d.supervise(transferring, incoming)
	cancel()
	d.work.Wait()
	d.finish(incoming)
}

// serveStored serves the readers from the store if the blob is there: another download may have ended just before this
// one began.
func (d *download) serveStored() bool {
	content, err := d.owner.store.Blob(d.allowed()[0], d.digest)
	if err != nil {
		return false
	}
	info, err := content.Stat()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil || d.facts.size >= 0 && info.Size() != d.facts.size {
		_ = content.Close() // it was only read
		return false
	}
	d.source = content
	d.facts.size = info.Size()
	d.facts.have.add(Span{0, info.Size()})
	d.state = state{announced: true, verified: true, stored: true}
	d.closed = true
	d.broadcast()
	return true
}

// receive opens the file and continues with the bytes of a partial download. It returns nil if the volume cannot be
// written.
func (d *download) receive() *store.Incoming {
	incoming, progress, err := d.owner.store.Receive(d.digest)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.owner.options.Unstored(d.digest, err)
		d.closed = true
		d.fail(errStorage)
		return nil
	}
	d.source = incoming
	sameSize := d.facts.size < 0 || progress.Size < 0 || progress.Size == d.facts.size
	if sameSize && slices.Contains(progress.Repositories, d.repositories[0]) {
		d.facts.have.load(progress.Spans)
		d.facts.size = max(d.facts.size, progress.Size)
	}
	d.broadcast()
	return incoming
}

// supervise starts transfers until the download has ended.
func (d *download) supervise(ctx context.Context, incoming *store.Incoming) {
	planned := time.Now().Add(tick)
	timer := time.NewTimer(tick)
	defer timer.Stop()
	recorded := time.Now()
	for d.step(ctx, incoming, time.Now()) {
		select {
		case <-d.events:
		case <-timer.C:
			now := time.Now()
			d.observeDelay(now.Sub(planned))
			planned = now.Add(tick)
			timer.Reset(tick)
		case <-ctx.Done():
			d.mu.Lock()
			d.fail(context.Cause(ctx))
			d.mu.Unlock()
		}
		if now := time.Now(); now.Sub(recorded) >= recordInterval {
			recorded = now
			d.warn("Cannot record the progress of a download", incoming.Record(d.progress()))
		}
	}
}

// observeDelay averages the delays of the last ticks. Without other work for the processor, they are less than 1 ms.
func (d *download) observeDelay(delay time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.facts.delay += (delay - d.facts.delay) / 4
}

// step starts the transfers that are due. It returns false when the download has ended.
func (d *download) step(ctx context.Context, incoming *store.Incoming, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cancelObsolete()
	for !d.state.ended() {
		v := d.look(now)
		v.speedup = v.speedup.judge(v)
		d.facts.speedup = v.speedup
		if v.ends() {
			break
		}
		next := v.next()
		if next == nil || !d.start(ctx, incoming, v, *next) {
			return true
		}
	}
	d.closed = true
	return false
}

// cancelObsolete cancels the transfers of bytes that other transfers have received. The caller holds the lock.
func (d *download) cancelObsolete() {
	for _, t := range d.transfers {
		if t.next < t.end && d.facts.have.firstGap(Span{t.next, t.end}).empty() {
			t.abandon()
		}
	}
}

// look returns the input of the next decision. The caller holds the lock.
func (d *download) look(now time.Time) view {
	v := view{facts: d.facts, now: now}
	v.typical = d.owner.pace.typical(now)
	for _, t := range d.transfers {
		v.flows = append(v.flows, t.flow(now))
	}
	for _, r := range d.readers {
		if n, ok := r.need(v.facts); ok {
			v.needs = append(v.needs, n)
		}
	}
	return v
}

// start starts a transfer. It returns false if the process has too many additional connections. The caller holds the lock.
func (d *download) start(ctx context.Context, incoming *store.Incoming, v view, o order) bool {
	t := newTransfer(d, incoming, o.Span, v.now)
	if o.reason == speeding {
		select {
		case d.owner.extra <- struct{}{}:
			t.done = func() { <-d.owner.extra }
		default:
			return false
		}
		d.facts.speedup = v.speedup.add(v)
	}
	if o.replace >= 0 {
		t.replaces = d.transfers[o.replace]
		t.replaces.replacement = t
		t.additional = true
	}
	if o.cut >= 0 {
		d.transfers[o.cut].end = o.Start
	}
	d.owner.metrics.connections.WithLabelValues(string(o.reason)).Inc()
	d.transfers = append(d.transfers, t)
	ctx, t.cancel = context.WithCancelCause(ctx)
	d.work.Go(func() {
		d.ended(t, t.run(ctx))
	})
	return true
}

// ended handles the end of a transfer: it was successful, or the download continues with another one, or fails.
func (d *download) ended(t *transfer, err error) {
	t.done()
	defer d.wake()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.owner.pace.observe(t.received, t.firstAt, t.lastByte)
	d.transfers = slices.DeleteFunc(d.transfers, func(other *transfer) bool { return other == t })
	if t.replaces != nil {
		t.replaces.replacement = nil
		if t.received == 0 || errors.Is(err, errObsolete) {
			d.facts.replacing = false // the other connection was not faster
		}
	}
	if t.replacement != nil {
		t.replacement.replaces = nil
	}
	failure, fromUpstream := errors.AsType[*upstream.Error](err)
	switch {
	case err == nil || errors.Is(err, errObsolete):
	case !fromUpstream:
		d.fail(err)
	case failure.RefusesRange() && t.ranged && d.facts.ranges != no:
		d.facts.ranges = no
	case len(d.transfers) > 0:
		// Another connection continues. The upstream may not allow several.
		d.facts.speedup = d.facts.speedup.limit()
	default:
		d.retry(failure, t.fresh)
	}
}

// retry decides how an interrupted download continues. The caller holds the lock.
func (d *download) retry(failure *upstream.Error, fresh int64) {
	if failure.Busy() && slices.ContainsFunc(d.readers, func(r *Reader) bool { return r.part.First > 0 }) {
		// containerd requests the upstream only for the first part of a layer that it pulls in parts. For a later one, an
		// error ends the pull, so the client has to wait.
		d.facts.notBefore = time.Now().Add(busyPause)
		return
	}
	d.facts.retries = d.facts.retries.after(fresh, len(d.readers) == 0)
	pause, again := d.facts.retries.pause()
	broken := failure.StatusCode == 0 && !failure.Busy()
	// Clients that have received nothing get the error immediately and can pull from the upstream themselves. A body that
	// breaks off before its first byte is requested again as often as containerd would.
	unread := d.facts.have == nil && !d.state.announced
	if !again || !broken || unread {
		d.fail(failure)
		return
	}
	d.facts.notBefore = time.Now().Add(pause)
}

// hash verifies the bytes in their order, as far as they are there.
func (d *download) hash(ctx context.Context, incoming *store.Incoming) {
	hasher := digest.SHA256.Digester()
	var hashed int64
	generation := 0
	for {
		facts, state, changed := d.snapshot()
		if state.ended() {
			return
		}
		if facts.generation != generation {
			generation, hashed = facts.generation, 0
			hasher.Hash().Reset()
		}
		if n := min(facts.have.endAt(hashed)-hashed, hashBuffer); n > 0 {
			if err := hashPart(hasher.Hash(), incoming, hashed, n); err != nil {
				d.end(fmt.Errorf("%w: %w", errStorage, err))
				return
			}
			hashed += n
			continue
		}
		if hashed == facts.size {
			if got := hasher.Digest(); got != d.digest {
				d.end(fmt.Errorf("verifying blob %s: %w: %s", d.digest, store.ErrDigestMismatch, got))
				return
			}
			d.end(nil)
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// hashBuffers are shared by all downloads, because most of them wait for the upstream most of the time.
var hashBuffers = sync.Pool{New: func() any { return new([hashBuffer]byte) }}

// hashPart hashes n bytes of the file, at most hashBuffer.
func hashPart(to io.Writer, file io.ReaderAt, offset, n int64) error {
	buffer := hashBuffers.Get().(*[hashBuffer]byte)
	defer hashBuffers.Put(buffer)
	if _, err := file.ReadAt(buffer[:n], offset); err != nil {
		return err
	}
	_, err := to.Write(buffer[:n])
	return err
}

// end ends the download: successfully if err is nil.
func (d *download) end(err error) {
	defer d.wake()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.fail(err)
		return
	}
	d.state.verified = true
	d.broadcast()
}

// finish stores a verified blob, keeps a partial one, and deletes a wrong one.
func (d *download) finish(incoming *store.Incoming) {
	facts, state, _ := d.snapshot()
	switch {
	case state.verified:
		d.owner.options.Verified(d.digest, facts.size)
		// The readers have all bytes. An error from here on costs another download at most.
		err := incoming.Commit(d.digest, d.unlinked())
		// Readers of other repositories may have joined meanwhile.
		for missing := d.unlinked(); err == nil && len(missing) > 0; missing = d.unlinked() {
			for _, repository := range missing {
				err = errors.Join(err, d.owner.store.LinkBlob(repository, d.digest))
			}
		}
		if err != nil {
			d.owner.options.Unstored(d.digest, err)
		}
	case errors.Is(state.err, store.ErrDigestMismatch), errors.Is(state.err, errStorage):
	case facts.have != nil:
		d.warn("Cannot keep a partial download", incoming.Keep(d.progress()))
		d.report(state.err)
		return
	}
	d.report(state.err)
	d.warn("Cannot delete a partial download", incoming.Discard())
}

// report logs why a download failed.
func (d *download) report(err error) {
	if err != nil && !errors.Is(err, errStorage) && !errors.Is(err, background.ErrClosed) {
		d.owner.options.Logger.Warn("Cannot download blob", "repository", d.allowed()[0], "digest", d.digest, "error", err)
	}
}
