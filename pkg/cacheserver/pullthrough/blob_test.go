// SPDX-License-Identifier: Apache-2.0

package pullthrough

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/background"
	"github.com/registry-cache/extension/pkg/cacheserver/blobs"
	"github.com/registry-cache/extension/pkg/cacheserver/download"
	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/cacheserver/volume/volumetest"
	"github.com/registry-cache/extension/pkg/contract"
	"github.com/registry-cache/extension/pkg/oci"
)

// buffer is the unit of the sizes below, in bytes.
const buffer = 128 << 10

// layer returns n bytes that differ from place to place.
func layer(n int) []byte {
	content := make([]byte, n)
	source := rand.NewChaCha8([32]byte{byte(n)})
	source.Read(content)
	return content
}

func TestBlobIsFetchedOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	for _, size := range []int{0, 1, 2, buffer, 3*buffer + 1} {
		content := layer(size)
		d := f.upstream.addBlob(repository, content)
		for i, want := range []result.Outcome{result.Miss, result.Hit} {
			got, outcome, err := f.read(t, repository, d)
			if err != nil || !bytes.Equal(got, content) || outcome != want {
				t.Errorf("%d bytes, read %d: %d bytes, %s, %v", size, i, len(got), outcome, err)
			}
			f.settle()
		}
		if diff := cmp.Diff([]string{"GET " + repository + "@" + d.String()}, f.upstream.seen()); diff != "" {
			t.Errorf("%d bytes: -want +got\n%s", size, diff)
		}
	}
}

func TestManyReadersShareOneFetch(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	content := layer(1 << 20)
	d := f.upstream.addBlob(repository, content)
	gate := newGate()
	f.upstream.change(func() { f.upstream.body = gate.body(1 << 19) })
	var readers sync.WaitGroup
	begun := make(chan struct{}, 30)
	for range cap(begun) {
		readers.Go(func() {
			b, err := f.Blob(t.Context(), repository, d, download.Part{})
			if err != nil {
				t.Error(err)
				return
			}
			defer b.Close()
			first := make([]byte, 1000)
			if _, err := io.ReadFull(b, first); err != nil {
				t.Error(err)
			}
			begun <- struct{}{}
			rest, err := io.ReadAll(b)
			if err != nil || !bytes.Equal(slices.Concat(first, rest), content) {
				t.Errorf("%d bytes, %v", len(first)+len(rest), err)
			}
		})
	}
	for range cap(begun) {
		<-begun
	}
	close(gate.opened)
	readers.Wait()
	f.settle()
	if diff := cmp.Diff([]string{"GET " + repository + "@" + d.String()}, f.upstream.seen()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestFetchGoesOnWithoutClients(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	content := layer(1 << 20)
	d := f.upstream.addBlob(repository, content)
	gate := newGate()
	f.upstream.change(func() { f.upstream.body = gate.body(1 << 19) })
	ctx, leave := context.WithCancel(t.Context())
	b, err := f.Blob(ctx, repository, d, download.Part{})
	if err != nil {
		t.Fatal(err)
	}
	leave()
	if _, err := io.Copy(io.Discard, b); !errors.Is(err, context.Canceled) {
		t.Errorf("reading after the client has left: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	close(gate.opened)
	f.settle()
	if got, err := f.storedContent(repository, d); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes are stored, %v", len(got), err)
	}
}

func TestWrongContentIsCutAndNotKept(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	content := layer(1000)
	wrong := bytes.Clone(content)
	wrong[500]++
	d := f.upstream.addBlob(repository, content)
	for _, known := range []bool{true, false} {
		f.upstream.change(func() {
			f.upstream.body = func(context.Context, []byte, int64) *upstream.Blob {
				blob := whole(wrong, 0)
				if !known {
					blob.Size = -1
				}
				return blob
			}
		})
		// With no size, only the end of the body without an error shows that it is complete.
		got, _, err := f.read(t, repository, d)
		if !errors.Is(err, store.ErrDigestMismatch) || known && len(got) >= len(content) {
			t.Errorf("size known %t: %d of %d bytes, %v", known, len(got), len(content), err)
		}
		f.settle()
		if _, err := f.storedContent(repository, d); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("size known %t: wrong content is stored: %v", known, err)
		}
		if n := f.leftovers(t); n > 0 {
			t.Errorf("size known %t: %d files are left", known, n)
		}
	}
	f.upstream.change(func() { f.upstream.body = nil })
	if got, _, err := f.read(t, repository, d); err != nil || !bytes.Equal(got, content) {
		t.Errorf("right content afterwards: %d bytes, %v", len(got), err)
	}
}

func TestUnknownSize(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	content := layer(1000)
	d := f.upstream.addBlob(repository, content)
	f.upstream.change(func() {
		f.upstream.body = func(_ context.Context, content []byte, _ int64) *upstream.Blob {
			blob := whole(content, 0)
			blob.Size = -1
			return blob
		}
	})
	if got, outcome, err := f.read(t, repository, d); err != nil || !bytes.Equal(got, content) || outcome != result.Miss {
		t.Errorf("%d bytes, %s, %v", len(got), outcome, err)
	}
	f.settle()
	if got, err := f.storedContent(repository, d); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes are stored, %v", len(got), err)
	}
}

func TestFetchResumes(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	content := layer(1000)
	d := f.upstream.addBlob(repository, content)
	f.upstream.change(func() {
		f.upstream.body = func(_ context.Context, content []byte, offset int64) *upstream.Blob {
			return cut(content, offset, 400, errBroken)
		}
	})
	if got, outcome, err := f.read(t, repository, d); err != nil || !bytes.Equal(got, content) || outcome != result.Miss {
		t.Errorf("%d bytes, %s, %v", len(got), outcome, err)
	}
	f.settle()
	if got, err := f.storedContent(repository, d); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes are stored, %v", len(got), err)
	}
	name := repository + "@" + d.String()
	if diff := cmp.Diff([]string{"GET " + name, "GET from 400 " + name, "GET from 800 " + name}, f.upstream.seen()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestFetchGivesUp(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		after int64
		err   error
		calls int
		want  result.Reason
	}{
		{"broken before the first byte", 0, errBroken, 4, result.Unavailable},
		{"no progress", 400, errBroken, 5, result.Unavailable},
		{"not found", 400, status(http.StatusNotFound), 1, result.NotFound},
		{"refused", 400, status(http.StatusTooManyRequests), 1, result.RateLimited},
		{"silent", 400, errSilent, 5, result.TimedOut},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 0, store.Options{})
			d := f.upstream.addBlob(repository, layer(1000))
			f.upstream.change(func() {
				f.upstream.body = func(_ context.Context, content []byte, offset int64) *upstream.Blob {
					return cut(content, offset, test.after-offset, test.err)
				}
			})
			got, _, err := f.read(t, repository, d)
			if int64(len(got)) != test.after || !errors.Is(err, test.err) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if test.after == 0 {
				if explained, ok := errors.AsType[*result.Error](err); !ok || explained.Reason != test.want {
					t.Errorf("got %v, want reason %d", err, test.want)
				}
			}
			f.settle()
			if calls := f.upstream.seen(); len(calls) != test.calls {
				t.Errorf("got %d calls, want %d: %v", len(calls), test.calls, calls)
			}
			// The next download continues behind the bytes that are there.
			kept := 0
			if test.after > 0 {
				kept = 2
			}
			if n := f.leftovers(t); n != kept {
				t.Errorf("%d files are left, want %d", n, kept)
			}
		})
	}
}

func TestSizeThatChangesEndsTheFetch(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	d := f.upstream.addBlob(repository, layer(1000))
	f.upstream.change(func() {
		f.upstream.body = func(_ context.Context, content []byte, offset int64) *upstream.Blob {
			blob := cut(content, offset, 400, errBroken)
			blob.Size += offset
			return blob
		}
	})
	want := fmt.Sprintf("GET %s: the response states a size of 1400 bytes, want 1000", d)
	if got, _, err := f.read(t, repository, d); len(got) != 400 || err == nil || err.Error() != want {
		t.Errorf("%d bytes, %v, want %s", len(got), err, want)
	}
}

// noFiles is the fault of a volume on which no file can be created.
var noFiles = volumetest.Fail(syscall.EROFS, volume.OpCreate)

// fullAfter is the fault of a volume that has space for n writes, each of which has at most buffer bytes.
func fullAfter(n int64) volumetest.Fault {
	return volumetest.After(n, volumetest.Fail(syscall.ENOSPC, volume.OpWrite))
}

func TestVolumeThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	const size = 10 * buffer
	for _, test := range []struct {
		name  string
		fault volumetest.Fault
	}{
		{"no file can be made", noFiles},
		{"full from the start", fullAfter(0)},
		{"full in the middle", fullAfter(4)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 0, store.Options{Volume: volumetest.New(t, test.fault)})
			content := layer(size)
			d := f.upstream.addBlob(repository, content)
			var clients sync.WaitGroup
			for range 4 {
				clients.Go(func() {
					got, outcome, err := f.read(t, repository, d)
					if err != nil || !bytes.Equal(got, content) || outcome != result.PassThrough {
						t.Errorf("%d of %d bytes, %s, %v", len(got), size, outcome, err)
					}
				})
			}
			clients.Wait()
			f.settle()
			if _, err := f.storedContent(repository, d); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("stored: %v", err)
			}
			if n := f.leftovers(t); n > 0 {
				t.Errorf("%d files are left", n)
			}
		})
	}
}

func TestPassThroughIsVerified(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{Volume: volumetest.New(t, noFiles)})
	content := layer(1000)
	d := f.upstream.addBlob(repository, content)
	f.upstream.change(func() {
		f.upstream.body = func(_ context.Context, content []byte, _ int64) *upstream.Blob {
			content[0]++
			return whole(content, 0)
		}
	})
	if got, _, err := f.read(t, repository, d); !errors.Is(err, store.ErrDigestMismatch) || len(got) == len(content) {
		t.Errorf("%d of %d bytes, %v", len(got), len(content), err)
	}
}

func TestSeekOnMiss(t *testing.T) {
	t.Parallel()
	const size = 1000
	content := layer(size)
	for name, o := range map[string]store.Options{
		"stored":         {},
		"passed through": {Volume: volumetest.New(t, noFiles)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 0, o)
			d := f.upstream.addBlob(repository, content)
			b, err := f.Blob(t.Context(), repository, d, download.Part{})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if b.Size() != size {
				t.Errorf("size %d", b.Size())
			}
			for _, seek := range []struct {
				offset int64
				whence int
				want   int64
			}{{0, io.SeekEnd, size}, {0, io.SeekStart, 0}, {300, io.SeekStart, 300}, {100, io.SeekCurrent, 500}, {-10, io.SeekEnd, 990}} {
				at, err := b.Seek(seek.offset, seek.whence)
				if err != nil || at != seek.want {
					t.Fatalf("Seek(%d, %d) = %d, %v, want %d", seek.offset, seek.whence, at, err, seek.want)
				}
				part := make([]byte, min(100, size-at))
				if _, err := io.ReadFull(b, part); err != nil || !bytes.Equal(part, content[at:at+int64(len(part))]) {
					t.Errorf("from %d: %v", at, err)
				}
			}
			if n, err := b.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("at the end: %d, %v", n, err)
			}
			if _, err := b.Seek(-1, io.SeekStart); err == nil {
				t.Error("seeking before the start succeeded")
			}
		})
	}
}

// A range that a silent connection does not reach comes from another one. Its bytes are stored, too.
func TestRangeAheadOfASilentConnection(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		after time.Duration // until the first connection continues
		calls int
	}{
		"soon": {time.Second, 1},
		"late": {time.Minute, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, 0, store.Options{})
				content := layer(1000)
				d := f.upstream.addBlob(repository, content)
				g := newGate()
				f.upstream.change(func() {
					f.upstream.body = func(ctx context.Context, content []byte, offset int64) *upstream.Blob {
						if offset > 0 {
							return whole(content, offset)
						}
						return g.body(100)(ctx, content, offset)
					}
				})
				// Another client requires all of the blob.
				all, err := f.Blob(t.Context(), repository, d, download.Part{})
				if err != nil {
					t.Fatal(err)
				}
				defer all.Close()
				b, err := f.Blob(t.Context(), repository, d, download.Part{First: 900})
				if err != nil {
					t.Fatal(err)
				}
				defer b.Close()
				time.AfterFunc(test.after, func() { close(g.opened) })
				began := time.Now()
				if err := b.Await(t.Context(), 900); err != nil {
					t.Fatal(err)
				}
				if _, err := b.Seek(900, io.SeekStart); err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(b)
				if err != nil || !bytes.Equal(got, content[900:]) || b.Outcome() != result.Miss {
					t.Errorf("%d bytes, %s, %v", len(got), b.Outcome(), err)
				}
				if took := time.Since(began); took > 4*time.Second {
					t.Errorf("took %s", took)
				}
				f.settle()
				if calls := f.upstream.seen(); len(calls) != test.calls {
					t.Errorf("calls: %v", calls)
				}
				if got, err := f.storedContent(repository, d); err != nil || !bytes.Equal(got, content) {
					t.Errorf("%d bytes are stored, %v", len(got), err)
				}
				time.Sleep(test.after)
			})
		})
	}
}

func TestAwait(t *testing.T) {
	t.Parallel()
	content := layer(1000)
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 0, store.Options{})
		d := f.upstream.addBlob(repository, content)
		gate := newGate()
		f.upstream.change(func() { f.upstream.body = gate.body(500) })
		open := func() blobs.Blob {
			b, err := f.Blob(t.Context(), repository, d, download.Part{})
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		await := func(ctx context.Context, b blobs.Blob, offset int64, want error, took time.Duration) {
			t.Helper()
			start := time.Now()
			if err := b.Await(ctx, offset); !errors.Is(err, want) || time.Since(start) != took {
				t.Errorf("%d: %v after %s, want %v after %s", offset, err, time.Since(start), want, took)
			}
		}
		first, second := open(), open()
		defer first.Close()
		defer second.Close()
		await(t.Context(), first, 499, nil, 0)
		await(t.Context(), first, 1000, nil, 0) // which is no range of the blob
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		await(impatient, first, 500, context.DeadlineExceeded, time.Second)
		// Clients wait 30 s for a header.
		await(t.Context(), first, 500, os.ErrDeadlineExceeded, 26*time.Second)
		time.AfterFunc(time.Second, func() { close(gate.opened) })
		third := open()
		defer third.Close()
		await(t.Context(), third, 999, nil, time.Second)
		f.settle()
		await(t.Context(), second, 999, nil, 0)
	})
}

// Waiting for a part does not change where reading begins.
func TestAwaitLeavesThePosition(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 0, store.Options{})
		content := layer(1000)
		d := f.upstream.addBlob(repository, content)
		g := newGate()
		f.upstream.change(func() {
			f.upstream.body = func(ctx context.Context, content []byte, offset int64) *upstream.Blob {
				if offset > 0 {
					return whole(content, offset)
				}
				return g.body(100)(ctx, content, offset)
			}
		})
		b, err := f.Blob(t.Context(), repository, d, download.Part{})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if err := b.Await(t.Context(), 900); err != nil {
			t.Fatal(err)
		}
		close(g.opened)
		if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d of %d bytes, %v", len(got), len(content), err)
		}
	})
}

// Content without space on the volume comes from the upstream, which may refuse it by now. Clients receive that error.
func TestAwaitBehindAFullVolume(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{Volume: volumetest.New(t, fullAfter(4))})
	content := layer(10 * buffer)
	d := f.upstream.addBlob(repository, content)
	b, err := f.Blob(t.Context(), repository, d, download.Part{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	f.settle()
	f.failWith(status(http.StatusTooManyRequests))
	offset := int64(8 * buffer)
	if explained, ok := errors.AsType[*result.Error](b.Await(t.Context(), offset)); !ok || explained.Reason != result.RateLimited {
		t.Errorf("%v, want that the upstream limits the rate", explained)
	}
	f.failWith(nil)
	if err := b.Await(t.Context(), offset); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Seek(offset, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, content[offset:]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestAwaitTellsTheErrorOfTheUpstream(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	content := layer(1000)
	d := f.upstream.addBlob(repository, content)
	broken := errors.New("broken")
	f.upstream.change(func() {
		f.upstream.body = func(_ context.Context, content []byte, offset int64) *upstream.Blob {
			return cut(content, offset, 500, broken)
		}
	})
	b, err := f.Blob(t.Context(), repository, d, download.Part{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, explained := errors.AsType[*result.Error](b.Await(t.Context(), 600)); !explained {
		t.Errorf("%v, want an *Error", b.Await(t.Context(), 600))
	}
	if err := b.Await(t.Context(), 600); !errors.Is(err, broken) {
		t.Errorf("%v, want that of the upstream", err)
	}
}

func TestOtherRepositoriesAskTheUpstream(t *testing.T) {
	t.Parallel()
	const other = "other/repository"
	for _, inFlight := range []bool{false, true} {
		t.Run(fmt.Sprintf("in flight %t", inFlight), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 0, store.Options{})
			content := layer(1000)
			d := f.upstream.addBlob(repository, content)
			gate := newGate()
			f.upstream.change(func() { f.upstream.body = gate.body(500) })
			first, err := f.Blob(t.Context(), repository, d, download.Part{})
			if err != nil {
				t.Fatal(err)
			}
			defer first.Close()
			if !inFlight {
				close(gate.opened)
				f.settle()
			}
			f.upstream.seen()

			if _, err := f.Blob(t.Context(), other, d, download.Part{}); !isNotFound(err) {
				t.Errorf("repository without the blob: %v", err)
			}
			f.upstream.change(func() { f.upstream.fail = func(string) error { return status(http.StatusServiceUnavailable) } })
			if _, err := f.Blob(t.Context(), other, d, download.Part{}); !isTemporary(err) {
				t.Errorf("upstream that cannot tell: %v", err)
			}
			f.upstream.change(func() { f.upstream.fail = nil })
			head := "HEAD " + other + "@" + d.String()
			if diff := cmp.Diff([]string{head, head}, f.upstream.seen()); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}

			f.upstream.addBlob(other, content)
			b, err := f.Blob(t.Context(), other, d, download.Part{})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if inFlight {
				close(gate.opened)
			}
			if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			f.settle()
			if diff := cmp.Diff([]string{head}, f.upstream.seen()); diff != "" {
				t.Errorf("a blob that is there was fetched: -want +got\n%s", diff)
			}
			if got, err := f.storedContent(other, d); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%d bytes are stored, %v", len(got), err)
			}
		})
	}
}

func TestFailureForOneRepositoryIsNoneForAnother(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	content := layer(1000)
	const other = "other/repository"
	d := f.upstream.addBlob(other, content)
	asked, answer := make(chan struct{}), make(chan struct{})
	f.upstream.change(func() {
		f.upstream.fail = func(call string) error {
			if call == "GET "+repository+"@"+d.String() {
				close(asked)
				<-answer
			}
			return nil
		}
	})
	var first sync.WaitGroup
	first.Go(func() {
		if _, err := f.Blob(t.Context(), repository, d, download.Part{}); !isNotFound(err) {
			t.Errorf("repository without the blob: %v", err)
		}
	})
	<-asked
	var second sync.WaitGroup
	second.Go(func() {
		if got, _, err := f.read(t, other, d); err != nil || !bytes.Equal(got, content) {
			t.Errorf("repository with the blob: %d bytes, %v", len(got), err)
		}
	})
	for f.upstream.count("HEAD "+other+"@"+d.String()) == 0 {
		runtime.Gosched()
	}
	close(answer)
	first.Wait()
	second.Wait()
}

// *upstream.Client finds another way where HEAD is refused; this covers the other cases.
func TestUpstreamWithoutHeadOfBlobs(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	content := layer(1000)
	d := f.upstream.addBlob(repository, content)
	const other = "other/repository"
	f.upstream.addBlob(other, content)
	f.upstream.change(func() {
		f.upstream.fail = func(call string) error {
			if call[:4] == "HEAD" {
				return status(http.StatusUnauthorized)
			}
			return nil
		}
	})
	for _, repository := range []string{repository, other} {
		got, outcome, err := f.read(t, repository, d)
		if err != nil || !bytes.Equal(got, content) || outcome != result.Miss {
			t.Errorf("%s: %d bytes, %s, %v", repository, len(got), outcome, err)
		}
		f.settle()
		if _, err := f.storedContent(repository, d); err != nil {
			t.Errorf("%s: %v", repository, err)
		}
	}
}

func TestStatBlob(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	d := f.upstream.addBlob(repository, layer(1000))
	if size, outcome, err := f.StatBlob(t.Context(), repository, d); size != 1000 || outcome != result.Miss || err != nil {
		t.Errorf("miss: %d, %s, %v", size, outcome, err)
	}
	if diff := cmp.Diff([]string{"HEAD " + repository + "@" + d.String()}, f.upstream.seen()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if _, _, err := f.read(t, repository, d); err != nil {
		t.Fatal(err)
	}
	f.settle()
	f.upstream.seen()
	if size, outcome, err := f.StatBlob(t.Context(), repository, d); size != 1000 || outcome != result.Hit || err != nil {
		t.Errorf("hit: %d, %s, %v", size, outcome, err)
	}
	if calls := f.upstream.seen(); len(calls) > 0 {
		t.Errorf("a hit asked the upstream: %v", calls)
	}
	missing := digest.FromString("missing")
	if _, _, err := f.StatBlob(t.Context(), repository, missing); !isNotFound(err) {
		t.Errorf("missing: %v", err)
	}
}

func TestCloseEndsFetches(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	d := f.upstream.addBlob(repository, layer(1000))
	f.upstream.change(func() { f.upstream.body = newGate().body(500) })
	b, err := f.Blob(t.Context(), repository, d, download.Part{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	f.Close()
	if got, err := io.ReadAll(b); len(got) != 500 || !errors.Is(err, background.ErrClosed) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if n := f.leftovers(t); n != 2 {
		t.Errorf("%d files are left, want the unfinished blob and its record", n)
	}
	if _, err := f.Blob(t.Context(), repository, digest.FromString("another"), download.Part{}); !errors.Is(err, background.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestReasons(t *testing.T) {
	t.Parallel()
	for want, err := range map[result.Reason]error{
		result.NotFound:    status(http.StatusNotFound),
		result.Denied:      status(http.StatusForbidden),
		result.RateLimited: status(http.StatusTooManyRequests),
		result.TimedOut:    status(http.StatusRequestTimeout),
		result.Unavailable: status(http.StatusInternalServerError),
	} {
		f := newFixture(t, 0, store.Options{})
		f.failWith(err)
		d := digest.FromString("blob")
		if _, err := f.Blob(t.Context(), repository, d, download.Part{}); reasonOf(t, err) != want {
			t.Errorf("blob: %v, want reason %d", err, want)
		}
		if _, _, err := f.StatBlob(t.Context(), repository, d); reasonOf(t, err) != want {
			t.Errorf("size of blob: %v, want reason %d", err, want)
		}
	}
}

// The upstream accepts all requests and never responds. Each response to a client must begin before the client gives up.
func TestAnswerTime(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	for name, request := range map[string]func(ctx context.Context, c *Cache) error{
		"GET of a tag": func(ctx context.Context, c *Cache) error {
			_, err := c.Manifest(ctx, repository, oci.Reference{Tag: "v1"})
			return err
		},
		"GET of a manifest": func(ctx context.Context, c *Cache) error {
			_, err := c.Manifest(ctx, repository, oci.Reference{Digest: d})
			return err
		},
		"HEAD of a tag": func(ctx context.Context, c *Cache) error {
			_, err := c.StatManifest(ctx, repository, oci.Reference{Tag: "v1"})
			return err
		},
		"HEAD of a blob": func(ctx context.Context, c *Cache) error {
			_, _, err := c.StatBlob(ctx, repository, d)
			return err
		},
		"GET of a blob": func(ctx context.Context, c *Cache) error {
			b, err := c.Blob(ctx, repository, d, download.Part{})
			if err != nil {
				return err
			}
			return errors.Join(b.Await(ctx, 0), b.Close())
		},
		"tags": func(ctx context.Context, c *Cache) error {
			_, err := c.Tags(ctx, repository, nil)
			return err
		},
		"referrers": func(ctx context.Context, c *Cache) error {
			_, err := c.Referrers(ctx, repository, d, nil)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, 0, store.Options{})
				f.upstream.silent = true
				start := time.Now()
				err := request(t.Context(), f.Cache)
				if reason := reasonOf(t, err); reason != result.TimedOut {
					t.Errorf("reason %v of %v", reason, err)
				}
				if got := time.Since(start); got != contract.MaxAnswerTime {
					t.Errorf("took %s, want %s", got, contract.MaxAnswerTime)
				}
			})
		})
	}
}

// A client that requests a blob again waits for one verification only. Clients that pull an image continuously do not cause one
// for each pull.
func TestVerifyBlob(t *testing.T) {
	t.Parallel()
	synctest.Test(t, testVerifyBlob)
}

func testVerifyBlob(t *testing.T) {
	f := newFixture(t, 0, store.Options{})
	content := layer(1000)
	d := f.upstream.addBlob(repository, content)
	if _, _, err := f.read(t, repository, d); err != nil {
		t.Fatal(err)
	}
	f.settle()
	verify := func(since time.Time, stored bool) {
		t.Helper()
		if err := f.VerifyBlob(t.Context(), d, since); err != nil {
			t.Fatal(err)
		}
		if _, err := f.storedContent(repository, d); (err == nil) != stored {
			t.Errorf("stored %t: %v", err == nil, err)
		}
	}
	received := time.Now()
	verify(received, true)
	content[0]++
	if err := os.WriteFile(filepath.Join(f.root, "docker/registry/v2/blobs/sha256", d.Encoded()[:2], d.Encoded(), "data"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	verify(received, true)
	time.Sleep(9 * time.Second)
	verify(time.Now(), true)
	time.Sleep(time.Second)
	verify(time.Now(), false)
}

// A client that requests a blob again pulls it from the upstream if the verification takes long.
func TestLongVerification(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var slow atomic.Bool
		files := volume.New(t.TempDir(), volume.Options{Fault: func(op volume.Op, _ string) error {
			if op == volume.OpRead && slow.Load() {
				time.Sleep(3 * time.Second)
			}
			return nil
		}})
		t.Cleanup(files.Close)
		f := newFixture(t, 0, store.Options{Volume: files})
		d := f.upstream.addBlob(repository, layer(1000))
		if _, _, err := f.read(t, repository, d); err != nil {
			t.Fatal(err)
		}
		f.settle()
		received := time.Now()
		time.Sleep(time.Second)
		slow.Store(true)
		began := time.Now()
		err := f.VerifyBlob(t.Context(), d, received)
		if took := time.Since(began); reasonOf(t, err) != result.Busy || took > 2*time.Second {
			t.Errorf("%v after %s", err, took)
		}
		// It continues, so that the next request does not wait again.
		f.settle()
		began = time.Now()
		if err := f.VerifyBlob(t.Context(), d, received); err != nil || time.Since(began) > 0 {
			t.Errorf("after the verification: %v after %s", err, time.Since(began))
		}
	})
}
