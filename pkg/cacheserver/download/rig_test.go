// SPDX-License-Identifier: Apache-2.0

package download

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/background"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

const repository = "library/alpine"

// origin is an upstream with one blob. Its fields are set before the first request. Time passes as in the bubble of a
// test.
type origin struct {
	content []byte
	// noRanges makes it send the whole blob instead of a range.
	noRanges bool
	// stripped makes it state that it supports ranges nevertheless: a proxy in between removes the header Range.
	stripped bool
	// noSize makes it leave the size out of its responses.
	noSize bool
	// rate is the present throughput of the nth connection in bytes per second, 0 for unlimited.
	rate func(n int) float64
	// headers is the time until the nth response begins.
	headers func(n int) time.Duration
	// fail is the error of the nth request.
	fail func(n int) error
	// limit reports that the nth request is refused with 429. Like upstream.Client, the origin repeats it successfully, unless
	// its caller has an alternative.
	limit func(n int) bool
	// cut is the number of bytes after which the nth body breaks off, 0 for never.
	cut func(n int) int64
	// connected is called with 1 and -1 when a body is opened and closed.
	connected func(change int)

	mu       sync.Mutex // guards the following fields
	requests []string
	sent     int64
	open     int
	maxOpen  int
}

func (o *origin) HeadBlob(context.Context, string, digest.Digest) (int64, error) {
	return int64(len(o.content)), nil
}

func (o *origin) Blob(ctx context.Context, _ string, _ digest.Digest, part upstream.Range) (*upstream.Blob, error) {
	o.mu.Lock()
	n := len(o.requests)
	o.requests = append(o.requests, fmt.Sprintf("%d-%d", part.Offset, part.End))
	o.mu.Unlock()
	if o.headers != nil {
		if err := sleep(ctx, o.headers(n)); err != nil {
			return nil, err
		}
	}
	if o.fail != nil {
		if err := o.fail(n); err != nil {
			return nil, err
		}
	}
	limited := o.limit != nil && o.limit(n)
	if limited && upstream.HasAlternative(ctx) {
		return nil, status(http.StatusTooManyRequests)
	}
	size := int64(len(o.content))
	offset, end := part.Offset, size
	if o.noRanges {
		offset = 0
	} else if part.End > 0 {
		end = part.End
	}
	b := &originBody{origin: o, ctx: ctx, rest: o.content[offset:end]}
	if o.rate != nil {
		b.rate = func() float64 { return o.rate(n) }
	}
	if o.cut != nil {
		b.cut = o.cut(n)
	}
	o.count(1)
	if o.noSize {
		size = -1
	}
	return &upstream.Blob{ReadCloser: b, Offset: offset, Size: size, Ranges: !o.noRanges || o.stripped && part == (upstream.Range{}), RateLimited: limited}, nil
}

type originBody struct {
	origin *origin
	ctx    context.Context
	rest   []byte
	rate   func() float64
	cut    int64
	read   int64
}

func (b *originBody) Read(p []byte) (int, error) {
	n := min(len(p), len(b.rest), 32<<10)
	if b.cut > 0 {
		n = min(n, int(b.cut-b.read))
	}
	if n == 0 {
		if b.cut > 0 && len(b.rest) > 0 {
			return 0, &upstream.Error{Op: "GET", Err: errors.New("connection reset")}
		}
		return 0, io.EOF
	}
	if b.rate != nil && b.rate() > 0 {
		if err := sleep(b.ctx, time.Duration(float64(n)/b.rate()*float64(time.Second))); err != nil {
			return 0, err
		}
	}
	copy(p, b.rest[:n])
	b.rest = b.rest[n:]
	b.read += int64(n)
	b.origin.mu.Lock()
	defer b.origin.mu.Unlock()
	b.origin.sent += int64(n)
	return n, nil
}

func (b *originBody) Close() error {
	b.origin.count(-1)
	return nil
}

// count changes the number of open bodies.
func (o *origin) count(change int) {
	if o.connected != nil {
		o.connected(change)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open += change
	o.maxOpen = max(o.maxOpen, o.open)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func randomContent(size int) []byte {
	content := make([]byte, size)
	random := rand.NewChaCha8([32]byte{byte(size)})
	_, _ = random.Read(content)
	return content
}

// rig is a cache of one blob.
type rig struct {
	t      *testing.T
	origin *origin
	digest digest.Digest
	root   string
	fault  func(op volume.Op, path string) error // of the volume
	*Downloads
}

// newRig returns a cache on an empty volume, which closes at the end of the test.
func newRig(t *testing.T, o *origin, options Options) *rig {
	t.Helper()
	r := &rig{t: t, origin: o, digest: digest.FromBytes(o.content), root: t.TempDir()}
	r.start(options)
	return r
}

// start opens the volume. The returned function closes it, which also happens at the end of the test.
func (r *rig) start(options Options) (stop func()) {
	r.t.Helper()
	files := volume.New(r.root, volume.Options{Fault: r.fault})
	r.t.Cleanup(files.Close)
	s, err := store.Open(r.root, store.Options{Volume: files})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(s.Close)
	group := background.New()
	r.Downloads = New(s, r.origin, group, options)
	stop = sync.OnceFunc(group.Close)
	r.t.Cleanup(stop)
	return stop
}

// open opens a reader, which closes at the end of the test at the latest.
func (r *rig) open(part Part) (*Reader, error) {
	reader, err := r.Open(r.t.Context(), Request{Repository: repository, Digest: r.digest, Part: part})
	if err == nil {
		err = reader.Await(r.t.Context(), part.span(int64(len(r.origin.content))).Start)
		if err != nil {
			err = errors.Join(err, reader.Close())
		}
	}
	return reader, err
}

// pull reads a part and returns how long that took.
func (r *rig) pull(part Part) (time.Duration, error) {
	began := time.Now()
	reader, err := r.open(part)
	if err != nil {
		return time.Since(began), err
	}
	want := part.span(int64(len(r.origin.content)))
	if _, err := reader.Seek(want.Start, io.SeekStart); err != nil {
		return 0, errors.Join(err, reader.Close())
	}
	got, err := io.ReadAll(io.LimitReader(reader, want.End-want.Start))
	took := time.Since(began)
	if err == nil && !bytes.Equal(got, r.origin.content[want.Start:want.End]) {
		err = errors.New("other bytes than the upstream has")
	}
	return took, errors.Join(err, reader.Close())
}

// stored reports that the volume has the blob.
func (r *rig) stored() bool {
	r.t.Helper()
	content, err := r.store.Blob(repository, r.digest)
	if err != nil {
		return false
	}
	defer content.Close()
	got, err := io.ReadAll(content)
	if err != nil || !bytes.Equal(got, r.origin.content) {
		r.t.Errorf("the stored blob has %d bytes, %v", len(got), err)
	}
	return true
}

func status(code int) error { return &upstream.Error{Op: "GET", StatusCode: code} }

func notFoundOnce(n int) error {
	if n == 0 {
		return status(http.StatusNotFound)
	}
	return nil
}
