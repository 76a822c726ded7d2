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

// supervisor decides which transfers a download needs, and verifies the bytes that they receive. It exists while the file of
// the download can be written.
type supervisor struct {
	*download
	incoming *store.Incoming
}

// run downloads the blob.
func (d *download) run(ctx context.Context) {
	defer d.leave()
	if d.serveStored() {
		return
	}
	incoming := d.receive()
	if incoming == nil {
		return
	}
	transferring, cancel := context.WithCancel(ctx)
	s := &supervisor{d, incoming}
	d.work.Go(func() { s.hash(transferring) })
	s.supervise(transferring)
	cancel()
	d.work.Wait()
	s.finish()
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
	facts, _, _ := d.snapshot()
	if err == nil && !isUsable(progress, facts.size, d.allowed()[0]) {
		// Its bytes would stay in the file, where nothing counts them.
		err = errors.Join(incoming.Discard(), incoming.Close())
		if err == nil {
			incoming, progress, err = d.owner.store.Receive(d.digest)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.owner.options.Unstored(d.digest, err)
		d.closed = true
		d.fail(errStorage)
		return nil
	}
	d.source = incoming
	d.facts.have.load(progress.Spans)
	for _, span := range d.facts.have {
		d.written += span.End - span.Start
	}
	d.facts.size = max(d.facts.size, progress.Size)
	d.broadcast()
	return incoming
}

// isUsable reports whether a download of a blob of this size, -1 if it is unknown, from the repository can continue with the
// progress of an earlier one.
func isUsable(p store.Progress, size int64, repository string) bool {
	if len(p.Spans) == 0 {
		return true
	}
	return (size < 0 || p.Size < 0 || p.Size == size) && slices.Contains(p.Repositories, repository)
}

// supervise starts transfers until the download has ended.
func (s *supervisor) supervise(ctx context.Context) {
	planned := time.Now().Add(tick)
	timer := time.NewTimer(tick)
	defer timer.Stop()
	recorded := time.Now()
	for s.step(ctx, time.Now()) {
		select {
		case <-s.events:
		case <-timer.C:
			now := time.Now()
			s.observeDelay(now.Sub(planned))
			planned = now.Add(tick)
			timer.Reset(tick)
		case <-ctx.Done():
			s.mu.Lock()
			s.fail(context.Cause(ctx))
			s.mu.Unlock()
		}
		if now := time.Now(); now.Sub(recorded) >= recordInterval {
			recorded = now
			s.warn("Cannot record the progress of a download", s.incoming.Record(s.progress()))
			// The time of the record is that of the volume, not a delay of the processor.
			planned = time.Now().Add(tick)
			timer.Reset(tick)
		}
	}
}

// observeDelay records the delay of a tick. Without other work for the processor, it is less than 1 ms.
func (s *supervisor) observeDelay(delay time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.facts.delay = averageDelay(s.facts.delay, delay)
}

// maxDelay bounds the effect of one tick, for example after a suspension of the machine.
const maxDelay = 10 * busy

// averageDelay returns the average delay after another tick. It follows a larger delay within a second and a smaller one
// within several seconds: on a busy processor, some ticks are in time.
func averageDelay(average, latest time.Duration) time.Duration {
	latest = min(latest, maxDelay)
	if latest > average {
		return average + (latest-average)/4
	}
	return average + (latest-average)/16
}

// step starts the transfers that are due. It returns false when the download has ended.
func (s *supervisor) step(ctx context.Context, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancelObsolete()
	for !s.state.ended() {
		v := s.look(now)
		v.speedup = v.speedup.judge(v)
		s.facts.speedup = v.speedup
		if v.ends() {
			break
		}
		next := v.next()
		if next == nil || !s.start(ctx, v, *next) {
			return true
		}
	}
	s.closed = true
	return false
}

// cancelObsolete cancels the transfers of bytes that other transfers have received. The caller holds the lock.
func (s *supervisor) cancelObsolete() {
	for _, t := range s.transfers {
		if t.next < t.end && s.facts.have.firstGap(Span{t.next, t.end}).empty() {
			t.abandon()
		}
	}
}

// look returns the input of the next decision. The caller holds the lock.
func (s *supervisor) look(now time.Time) view {
	v := view{facts: s.facts, now: now}
	v.typical = s.owner.pace.typical(now)
	for _, t := range s.transfers {
		v.flows = append(v.flows, t.flow(now))
	}
	for _, r := range s.readers {
		if n, ok := r.need(v.facts); ok {
			v.needs = append(v.needs, n)
		}
	}
	return v
}

// start starts a transfer. It returns false if the process has too many additional connections. The caller holds the lock.
func (s *supervisor) start(ctx context.Context, v view, o order) bool {
	t := newTransfer(s.download, s.incoming, o.Span, v.now)
	if o.reason == speeding {
		select {
		case s.owner.extra <- struct{}{}:
			t.done = func() { <-s.owner.extra }
		default:
			return false
		}
		ctx = upstream.WithAlternative(ctx) // the transfer that is split
		s.facts.speedup = v.speedup.add(v)
	}
	if o.replace >= 0 {
		t.replaces = s.transfers[o.replace]
		t.replaces.replacement = t
		t.additional = true
	}
	s.owner.metrics.connections.WithLabelValues(string(o.reason)).Inc()
	s.transfers = append(s.transfers, t)
	ctx, t.cancel = context.WithCancelCause(ctx)
	s.work.Go(func() {
		s.ended(t, t.run(ctx))
	})
	return true
}

// ended handles the end of a transfer: it was successful, or the download continues with another one, or fails.
func (s *supervisor) ended(t *transfer, err error) {
	t.done()
	defer notify(s.events)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owner.pace.observe(t.received, t.firstAt, t.lastByte)
	s.transfers = slices.DeleteFunc(s.transfers, func(other *transfer) bool { return other == t })
	if t.replaces != nil {
		t.replaces.replacement = nil
		if t.received == 0 || errors.Is(err, errObsolete) {
			s.facts.replacing = false // the other connection was not faster
		}
	}
	if t.replacement != nil {
		t.replacement.replaces = nil
	}
	failure, fromUpstream := errors.AsType[*upstream.Error](err)
	switch {
	case err == nil || errors.Is(err, errObsolete):
		if t.beside && t.fresh >= enough {
			s.facts.refusals = refusals{}
		}
	case !fromUpstream:
		s.fail(err)
	case failure.RefusesRange() && t.ranged && s.facts.ranges != no:
		s.facts.withoutRanges()
	case len(s.transfers) > 0:
		// Another connection continues.
		s.facts.speedup = s.facts.speedup.limit()
		if t.beside || t.fresh < enough {
			s.facts.refusals = s.facts.refusals.after(failure, t.fresh, time.Now())
		}
	default:
		s.retry(failure, t.fresh)
	}
}

// retry decides how an interrupted download continues. The caller holds the lock.
func (s *supervisor) retry(failure *upstream.Error, fresh int64) {
	if failure.Busy() && slices.ContainsFunc(s.readers, func(r *Reader) bool { return r.part.First > 0 }) {
		// containerd requests the upstream only for the first part of a layer that it pulls in parts. For a later one, an
		// error ends the pull, so the client has to wait.
		s.facts.notBefore = time.Now().Add(busyPause)
		return
	}
	s.facts.retries = s.facts.retries.after(fresh, len(s.readers) == 0)
	pause, again := s.facts.retries.pause()
	broken := failure.StatusCode == 0 && !failure.Busy()
	// Clients that have received nothing get the error immediately and can pull from the upstream themselves. A body that
	// breaks off before its first byte is requested again as often as containerd would.
	unread := s.facts.have == nil && !s.state.announced
	if !again || !broken || unread {
		s.fail(failure)
		return
	}
	s.facts.notBefore = time.Now().Add(pause)
}

// hash verifies the bytes in their order, as far as they are there.
func (s *supervisor) hash(ctx context.Context) {
	hasher := digest.SHA256.Digester()
	var hashed int64
	generation := 0
	for {
		facts, state, _ := s.snapshot()
		if state.ended() {
			return
		}
		if facts.generation != generation {
			generation, hashed = facts.generation, 0
			hasher.Hash().Reset()
		}
		if n := min(facts.have.endAt(hashed)-hashed, hashBuffer); n > 0 {
			if err := hashPart(hasher.Hash(), s.incoming, hashed, n); err != nil {
				s.unreadable(err)
				return
			}
			hashed += n
			continue
		}
		if hashed == facts.size {
			if got := hasher.Digest(); got != s.digest {
				s.end(fmt.Errorf("verifying blob %s: %w: %s", s.digest, store.ErrDigestMismatch, got))
				return
			}
			s.end(nil)
			return
		}
		select {
		case <-s.grown:
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

// finish stores a verified blob, keeps a partial one, and deletes a wrong one.
func (s *supervisor) finish() {
	facts, state, _ := s.snapshot()
	switch {
	case state.verified:
		s.owner.options.Verified(s.digest, facts.size)
		// The readers have all bytes. An error from here on costs another download at most.
		err := s.incoming.Commit(s.digest, facts.size, s.unlinked())
		// Readers of other repositories may have joined meanwhile.
		for missing := s.unlinked(); err == nil && len(missing) > 0; missing = s.unlinked() {
			for _, repository := range missing {
				err = errors.Join(err, s.owner.store.LinkBlob(repository, s.digest))
			}
		}
		if err != nil {
			s.owner.options.Unstored(s.digest, err)
		}
	case errors.Is(state.err, store.ErrDigestMismatch), errors.Is(state.err, errStorage):
	case facts.have != nil:
		s.warn("Cannot keep a partial download", s.incoming.Keep(s.progress()))
		s.report(state.err)
		return
	}
	s.report(state.err)
	s.warn("Cannot delete a partial download", s.incoming.Discard())
}

// report logs why a download failed.
func (s *supervisor) report(err error) {
	if err != nil && !errors.Is(err, errStorage) && !errors.Is(err, background.ErrClosed) {
		s.owner.options.Logger.Warn("Cannot download blob", "repository", s.allowed()[0], "digest", s.digest, "error", err)
	}
}
