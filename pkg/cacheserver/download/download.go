// SPDX-License-Identifier: Apache-2.0

package download

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/store"
)

// errStorage ends a download because the volume cannot be written or read. Its readers continue with requests of their own.
var errStorage = errors.New("the volume cannot be written or read")

// download is the state of the download of one blob. It belongs to the cache: it continues when its readers leave. Its
// supervisor, transfers, hasher and readers share it.
type download struct {
	owner  *Downloads
	digest digest.Digest
	// expected is the size that a manifest states, in bytes, -1 if none is known.
	expected int64
	// events wakes the supervisor, grown wakes the hasher.
	events, grown chan struct{}
	// work are the transfers and the hasher.
	work sync.WaitGroup
	// space serializes the reservations of the transfers.
	space sync.Mutex

	mu        sync.Mutex    // guards all that follows
	changed   chan struct{} // closed and replaced when readers may continue
	pieceAt   time.Time     // of the last piece for readers, see grow
	delayed   bool          // readers may continue when a timer fires
	source    source        // nil until bytes can be read
	facts     facts
	state     state
	transfers []*transfer
	readers   []*Reader
	// repositories contain the blob. The transfers use the first one.
	repositories []string
	reserved     bool          // the space for all of the blob
	written      int64         // bytes in the file
	accounted    int64         // bytes of written that are reserved, unless reserved is set
	linked       []string      // repositories for which the blob was stored
	stored       bool          // for all of them
	closed       bool          // accepts no more readers unless it is verified
	left         bool          // the supervisor has ended, so that no reader is accepted
	references   int           // readers, and the supervisor
	gone         chan struct{} // closed when the next download of the blob may begin
}

// source is where readers read: the growing file, or the stored one.
type source interface {
	ReadAt(p []byte, offset int64) (int, error)
	Close() error
}

// state is how far a download is. It ends verified or with an error.
type state struct {
	// announced reports that the upstream has confirmed the blob and its size by a response, or that the blob is stored.
	announced bool
	// verified reports that all bytes are there and have the digest.
	verified bool
	// stored reports that the blob was stored before the download began.
	stored bool
	// refused is the error of all readers before verified: the upstream has another size than the manifest states.
	refused error
	// err ends a download that is not verified.
	err error
}

func (s state) ended() bool { return s.verified || s.err != nil }

func newDownload(owner *Downloads, d digest.Digest, size int64, repository string) *download {
	return &download{
		owner:        owner,
		digest:       d,
		expected:     size,
		events:       make(chan struct{}, 1),
		grown:        make(chan struct{}, 1),
		changed:      make(chan struct{}),
		facts:        facts{size: size, replacing: true, speedup: newSpeedup()},
		repositories: []string{repository},
		references:   1,
		gone:         make(chan struct{}),
	}
}

// addReader adds a reader. It returns nil if the download has failed or stops. allowed
// reports that the repository is known to contain the blob.
func (d *download) addReader(ctx context.Context, r Request, joined bool) (reader *Reader, allowed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed && !d.state.verified || d.state.err != nil || d.stored || d.left {
		return nil, false
	}
	reader = &Reader{ctx: ctx, download: d, repository: r.Repository, part: r.Part, began: r.Began, size: -1, follower: joined, hit: d.state.verified}
	allowed = slices.Contains(d.repositories, r.Repository)
	reader.foreign = !allowed
	d.references++
	d.readers = append(d.readers, reader)
	d.facts.alone = time.Time{}
	d.facts.complete = d.facts.complete || r.Part.complete()
	notify(d.events)
	return reader, allowed
}

// removeReader removes a reader that addReader has added.
func (d *download) removeReader(r *Reader) {
	d.mu.Lock()
	if i := slices.Index(d.readers, r); i >= 0 {
		d.readers = slices.Delete(d.readers, i, i+1)
		if len(d.readers) == 0 {
			d.facts.alone = time.Now()
		}
	}
	d.mu.Unlock()
	notify(d.events)
	d.release()
}

// allow lets readers of another repository read the blob, which is then stored for that repository, too. It returns false
// if it is too late for that: the caller stores it.
func (d *download) allow(repository string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Contains(d.repositories, repository) {
		d.repositories = append(d.repositories, repository)
	}
	return !d.stored
}

// unlinked returns the repositories for which a verified blob has to be stored. If there are none, the download accepts no
// more readers: they find the blob in the store.
func (d *download) unlinked() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	missing := slices.DeleteFunc(slices.Clone(d.repositories), func(r string) bool { return slices.Contains(d.linked, r) })
	d.linked = append(d.linked, missing...)
	d.stored = len(missing) == 0
	return missing
}

// restart forgets the bytes of an earlier download. The caller holds the lock.
func (d *download) restart() {
	d.facts.have = nil
	d.facts.generation++
	d.written = 0
}

func (d *download) allowed() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.repositories)
}

// snapshot returns the state, and a channel that is closed when it changes.
func (d *download) snapshot() (facts, state, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.facts, d.state, d.changed
}

// readable returns the number of bytes from the offset on that a reader may have. The last byte of the blob can be
// withheld, see Reader.withholds.
func (f facts) readable(offset int64, withhold bool) int64 {
	end := f.have.endAt(offset)
	if withhold && f.size >= 0 {
		end = min(end, f.size-1)
	}
	return max(end-offset, 0)
}

// fail ends the download. The caller holds the lock.
func (d *download) fail(err error) {
	if !d.state.ended() {
		d.state.err = err
		d.broadcast()
	}
}

// end ends the download: successfully if err is nil.
func (d *download) end(err error) {
	defer notify(d.events)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.fail(err)
		return
	}
	d.state.verified = true
	d.broadcast()
}

// unreadable ends the download, because bytes of the file cannot be read. The first error is reported.
func (d *download) unreadable(err error) {
	d.mu.Lock()
	ended := d.state.ended()
	d.fail(errStorage)
	d.mu.Unlock()
	if !ended {
		d.owner.options.Unstored(d.digest, err)
		notify(d.events)
	}
}

// unstorable reports an error of the volume.
func (d *download) unstorable(err error) error {
	d.owner.options.Unstored(d.digest, err)
	return errStorage
}

// broadcast lets the readers and the hasher continue. The caller holds the lock.
func (d *download) broadcast() {
	close(d.changed)
	d.changed, d.delayed = make(chan struct{}), false
	notify(d.grown)
}

const (
	// readerInterval is the time between two pieces of a growing file that readers get, for each reader of the download. An
	// upstream can send single TLS records of 16 KiB. When the cache sent each record to 33 nodes on a machine with two
	// processors, a pull from an upstream with 4 MiB/s took twice as long.
	readerInterval = time.Millisecond
	// maxReaderInterval bounds the delay that many readers cause.
	maxReaderInterval = 100 * time.Millisecond
)

// grow lets the hasher continue, and the readers after the interval since the last piece. The first piece is not delayed. The
// caller holds the lock.
func (d *download) grow() {
	notify(d.grown)
	if d.delayed {
		return
	}
	wait := min(readerInterval*time.Duration(len(d.readers)), maxReaderInterval) - time.Since(d.pieceAt)
	if wait <= 0 {
		d.pieceAt = time.Now()
		d.broadcast()
		return
	}
	d.delayed = true
	time.AfterFunc(wait, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.delayed {
			d.pieceAt = time.Now()
			d.broadcast()
		}
	})
}

// notify wakes the receiver of a channel with a buffer of one element.
func notify(events chan<- struct{}) {
	select {
	case events <- struct{}{}:
	default:
	}
}

func (d *download) progress() store.Progress {
	d.mu.Lock()
	defer d.mu.Unlock()
	return store.Progress{Digest: d.digest, Size: d.facts.size, Spans: d.facts.have.pairs(), Repositories: slices.Clone(d.repositories)}
}

// leave gives up the reference of the supervisor. If no reader is left, the file is closed when leave returns, so that the next
// download of the blob can continue with its bytes.
func (d *download) leave() {
	d.mu.Lock()
	d.left = true
	d.mu.Unlock()
	d.release()
}

// release gives up a reference; the last one closes the source.
func (d *download) release() {
	d.mu.Lock()
	d.references--
	last, opened := d.references == 0, d.source
	d.mu.Unlock()
	if last && opened != nil {
		d.warn("Cannot close a blob", opened.Close())
	}
}

// warn logs an error that no client sees.
func (d *download) warn(text string, err error) {
	if err != nil {
		d.owner.options.Logger.Warn(text, "digest", d.digest, "error", err)
	}
}
