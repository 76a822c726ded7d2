// SPDX-License-Identifier: Apache-2.0

package download

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/contract"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// atRate is a rate of all connections.
func atRate(bytesPerSecond float64) func(int) float64 {
	return func(int) float64 { return bytesPerSecond }
}

func TestWhole(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]*origin{
		"several buffers": {content: randomContent(3*transferBuffer + 17)},
		"one byte":        {content: []byte{1}},
		"empty":           {content: []byte{}},
		"without size":    {content: randomContent(1000), noSize: true},
		"without ranges":  {content: randomContent(1000), noRanges: true},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, o, Options{})
			if _, err := r.pull(Part{}); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			synctest.Wait()
			if !r.stored() || o.sent != int64(len(o.content)) || r.Running(r.digest) {
				t.Errorf("%s: stored %t, upstream sent %d bytes, running %t", name, r.stored(), o.sent, r.Running(r.digest))
			}
		})
	}
}

// A blob that is empty according to its manifest needs no request.
func TestEmptyBlob(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &origin{content: []byte{}}
		r := newRig(t, o, Options{ExpectedSize: func(digest.Digest) (int64, bool) { return 0, true }})
		if took, err := r.pull(Part{}); err != nil || took > time.Second || len(o.requests) > 0 {
			t.Errorf("%v after %s; requests %v", err, took, o.requests)
		}
		synctest.Wait()
		if !r.stored() {
			t.Error("the blob is not stored")
		}
	})
}

// A response with a range does not always state the size of the blob. Then its reader gets the whole blob.
func TestRangeWithoutSize(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &origin{content: randomContent(4 << 20), rate: atRate(4 << 20), noSize: true}
		r := newRig(t, o, Options{})
		began := time.Now()
		reader, err := r.Open(t.Context(), Request{Repository: repository, Digest: r.digest, Part: Part{First: 2 << 20}})
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		got, err := io.ReadAll(reader)
		if err != nil || reader.Size() >= 0 || !bytes.Equal(got, o.content) || time.Since(began) > 2*time.Second {
			t.Errorf("%d bytes of a size of %d, %v after %s; requests %v", len(got), reader.Size(), err, time.Since(began), o.requests)
		}
	})
}

// 20 nodes with a containerd that requests each layer in four chunks cause one transfer of each byte.
func TestChunksOfAHerd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const size = 8 << 20
		o := &origin{content: randomContent(size), rate: atRate(256 << 10)}
		r := newRig(t, o, Options{ExpectedSize: func(digest.Digest) (int64, bool) { return size, true }})
		var pulls sync.WaitGroup
		for client := range 20 {
			for chunk := range int64(4) {
				pulls.Go(func() {
					time.Sleep(time.Duration(client) * 100 * time.Millisecond)
					if _, err := r.pull(Part{First: chunk * size / 4, Length: size / 4}); err != nil {
						t.Error(err)
					}
				})
			}
		}
		pulls.Wait()
		synctest.Wait()
		if o.sent != size || !r.stored() {
			t.Errorf("the upstream sent %d bytes of %d by %v, stored %t", o.sent, size, o.requests, r.stored())
		}
	})
}

// A reader of a range does not wait for the end of those of many other ranges.
func TestManyRanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const ranges, part, rate = maxTransfers + 4, 2 << 20, 64 << 10
		o := &origin{content: randomContent(ranges * part), rate: atRate(rate)}
		r := newRig(t, o, Options{ExpectedSize: func(digest.Digest) (int64, bool) { return ranges * part, true }})
		var pulls sync.WaitGroup
		for i := range int64(ranges) {
			pulls.Go(func() {
				if took, err := r.pull(Part{First: i * part, Length: part}); err != nil || took > part/rate*time.Second+time.Second {
					t.Errorf("range %d: %v after %s", i, err, took)
				}
			})
		}
		pulls.Wait()
		if o.sent != ranges*part || o.maxOpen > ranges {
			t.Errorf("the upstream sent %d bytes of %d through %d connections", o.sent, ranges*part, o.maxOpen)
		}
	})
}

// Lazy snapshotters read the last bytes first. They do not wait for the rest of the blob.
func TestSuffixOfAnUncachedBlob(t *testing.T) {
	t.Parallel()
	for _, running := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			const size = 16 << 20
			o := &origin{content: randomContent(size), rate: atRate(1 << 20)}
			r := newRig(t, o, Options{ExpectedSize: func(digest.Digest) (int64, bool) { return size, true }})
			if running {
				whole, err := r.open(Part{})
				if err != nil {
					t.Fatal(err)
				}
				defer whole.Close()
			}
			took, err := r.pull(Part{Suffix: 51})
			if err != nil || took > time.Second {
				t.Errorf("running %t: %v after %s, want the last bytes within 1 s", running, err, took)
			}
			if !running && o.sent > 2*alignment {
				t.Errorf("the upstream sent %d bytes for the last 51", o.sent)
			}
		})
	}
}

// A registry that limits each connection to 25 MB/s is no bottleneck for large blobs.
func TestAdditionalConnections(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name      string
		size      int
		rate      func(n int) float64
		noRanges  bool
		most      time.Duration
		least     int // connections at the same time
		connected int // at most
	}{
		{name: "limited per connection", size: 64 << 20, rate: atRate(6e6), most: 7 * time.Second, least: 3, connected: maxConnections},
		{name: "without ranges", size: 16 << 20, rate: atRate(4 << 20), noRanges: true, most: 5 * time.Second, connected: 1},
		{name: "small blob", size: minSpeedupSize - 1, rate: atRate(1 << 20), most: 17 * time.Second, connected: 1},
		{name: "fast connection", size: 32 << 20, rate: atRate(32 << 20), most: 1100 * time.Millisecond, connected: 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			o := &origin{content: randomContent(test.size), rate: test.rate, noRanges: test.noRanges}
			r := newRig(t, o, Options{})
			took, err := r.pull(Part{})
			if err != nil || took > test.most {
				t.Errorf("%s: %v after %s, want at most %s", test.name, err, took, test.most)
			}
			if o.maxOpen < test.least || o.maxOpen > test.connected {
				t.Errorf("%s: %d connections at the same time, want %d to %d: %v", test.name, o.maxOpen, test.least, test.connected, o.requests)
			}
			if limit := int64(test.size) + int64(test.size)/100; o.sent > limit {
				t.Errorf("%s: the upstream sent %d bytes of %d", test.name, o.sent, test.size)
			}
		})
	}
}

// An upstream that has answered 429 gets no additional request, and the transfer that was about to be split continues to its
// end.
func TestLimitedUpstream(t *testing.T) {
	t.Parallel()
	const size = 64 << 20
	for _, test := range []struct {
		name        string
		limited     int // the request that is refused
		requests    int // in all
		connections int // at the same time
	}{
		{"the only request", 0, 1, 1},
		{"the first additional request", 1, 2, 1},
		{"the second additional request", 2, 3, 2},
	} {
		synctest.Test(t, func(t *testing.T) {
			o := &origin{content: randomContent(size), limit: func(n int) bool { return n == test.limited }}
			// The second connection ends first, so that the first one could be split again.
			o.rate = func(n int) float64 { return float64(4<<20) * float64(1+n%2) }
			r := newRig(t, o, Options{})
			took, err := r.pull(Part{})
			if err != nil || took > (size>>22+1)*time.Second {
				t.Errorf("%s is refused: %v after %s", test.name, err, took)
			}
			if len(o.requests) != test.requests || o.sent > size+size/100 {
				t.Errorf("%s is refused: requests %v for %d bytes, want %d", test.name, o.requests, o.sent, test.requests)
			}
			if o.maxOpen != test.connections {
				t.Errorf("%s is refused: %d connections at the same time, want %d", test.name, o.maxOpen, test.connections)
			}
		})
	}
}

// An upstream that states that it supports ranges, but sends the whole blob, is used like one without ranges.
func TestIgnoredRanges(t *testing.T) {
	t.Parallel()
	const size, rate = 16 << 20, 2 << 20
	for _, test := range []struct {
		name     string
		parts    []Part // one reader each, one second after the other
		cut      int64  // of the first response
		most     time.Duration
		requests int
		sent     int64
	}{
		{name: "large blob", parts: []Part{{}}, most: 9 * time.Second, requests: 2, sent: size},
		{name: "reader far ahead", parts: []Part{{}, {First: size / 2}}, most: 9 * time.Second, requests: 3, sent: size},
		{name: "only a range", parts: []Part{{First: size / 2}}, most: 9 * time.Second, requests: 1, sent: size},
		{name: "two ranges", parts: []Part{{First: size / 2, Length: 1 << 20}, {First: size / 4, Length: 1 << 20}}, most: 9 * time.Second, requests: 1, sent: size},
		{name: "interruption", parts: []Part{{}}, cut: size - 4<<20, most: 15 * time.Second, requests: 3, sent: 2*size - 4<<20},
	} {
		synctest.Test(t, func(t *testing.T) {
			o := &origin{content: randomContent(size), rate: atRate(rate), noRanges: true, stripped: true}
			o.headers = func(int) time.Duration { return 20 * time.Millisecond }
			o.cut = func(n int) int64 {
				if n == 0 {
					return test.cut
				}
				return 0
			}
			r := newRig(t, o, Options{ExpectedSize: func(digest.Digest) (int64, bool) { return size, true }})
			var pulls sync.WaitGroup
			for i, part := range test.parts {
				pulls.Go(func() {
					time.Sleep(time.Duration(i) * time.Second)
					if took, err := r.pull(part); err != nil || took > test.most {
						t.Errorf("%s: %v after %s, want at most %s", test.name, err, took, test.most)
					}
				})
			}
			pulls.Wait()
			if len(o.requests) > test.requests || o.sent > test.sent+1<<20 {
				t.Errorf("%s: %d requests for %d bytes, want at most %d for %d", test.name, len(o.requests), o.sent, test.requests, test.sent)
			}
		})
	}
}

// An upstream whose headers are late gets no additional requests for a blob that is not worth them.
func TestLateHeaders(t *testing.T) {
	t.Parallel()
	for _, header := range []time.Duration{1900 * time.Millisecond, 2500 * time.Millisecond, 4500 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			const size, rate = 8 << 20, 1 << 20
			o := &origin{content: randomContent(size), rate: atRate(rate), headers: func(int) time.Duration { return header }}
			r := newRig(t, o, Options{ExpectedSize: func(digest.Digest) (int64, bool) { return size, true }})
			took, err := r.pull(Part{})
			if err != nil || took > header+size/rate*time.Second+100*time.Millisecond || len(o.requests) != 1 {
				t.Errorf("header after %s: %v after %s; requests %v", header, err, took, o.requests)
			}
		})
	}
}

// A pull is never slower because an additional transfer begins late, or never.
func TestUselessAdditionalTransfer(t *testing.T) {
	t.Parallel()
	const size, rate = 16 << 20, 2 << 20
	additional := func(d time.Duration) func(int) time.Duration {
		return func(n int) time.Duration {
			if n == 0 {
				return 0
			}
			return d
		}
	}
	for _, test := range []struct {
		name    string
		headers func(n int) time.Duration
		fail    func(n int) error
		rate    float64 // of the additional transfer
	}{
		{name: "late header", headers: additional(5 * time.Second), rate: rate},
		{name: "header after the first transfer has ended", headers: additional(time.Minute), rate: rate},
		{name: "late refusal", headers: additional(3 * time.Second), fail: func(n int) error {
			if n > 0 {
				return status(http.StatusServiceUnavailable)
			}
			return nil
		}},
		{name: "no body", rate: 100},
	} {
		for _, parts := range [][]Part{{{}}, {{}, {First: size / 2}}} {
			synctest.Test(t, func(t *testing.T) {
				o := &origin{content: randomContent(size), headers: test.headers, fail: test.fail}
				o.rate = func(n int) float64 {
					if n == 0 {
						return rate
					}
					return test.rate
				}
				r := newRig(t, o, Options{ExpectedSize: func(digest.Digest) (int64, bool) { return size, true }})
				var pulls sync.WaitGroup
				for i, part := range parts {
					pulls.Go(func() {
						time.Sleep(time.Duration(i) * time.Second)
						if took, err := r.pull(part); err != nil || took > size/rate*time.Second+100*time.Millisecond {
							t.Errorf("%s, reader %d of %d: %v after %s; requests %v", test.name, i, len(parts), err, took, o.requests)
						}
					})
				}
				pulls.Wait()
				if o.sent > size+size/4 {
					t.Errorf("%s, %d readers: the upstream sent %d bytes", test.name, len(parts), o.sent)
				}
			})
		}
	}
}

// An upstream that refuses a second connection receives few requests for it. The reader that needs it gets its bytes from the
// first one.
func TestRefusedConnections(t *testing.T) {
	t.Parallel()
	const size, rate = 30 << 20, 1 << 20
	for name, test := range map[string]struct {
		failure  error
		requests int
	}{
		"503":    {status(http.StatusServiceUnavailable), 6},
		"403":    {status(http.StatusForbidden), 6},
		"broken": {&upstream.Error{Op: "GET", Err: syscall.ECONNREFUSED}, 10},
	} {
		synctest.Test(t, func(t *testing.T) {
			o := &origin{content: randomContent(size), rate: atRate(rate)}
			o.fail = func(int) error {
				o.mu.Lock()
				defer o.mu.Unlock()
				if o.open > 0 {
					return test.failure
				}
				return nil
			}
			r := newRig(t, o, Options{ExpectedSize: func(digest.Digest) (int64, bool) { return size, true }})
			var pulls sync.WaitGroup
			for at, part := range []Part{{}, {First: size - 5<<20, Length: 1 << 20}} {
				pulls.Go(func() {
					time.Sleep(time.Duration(at) * time.Second)
					if took, err := r.pull(part); err != nil || took > size/rate*time.Second+time.Second {
						t.Errorf("%s: %v after %s", name, err, took)
					}
				})
			}
			pulls.Wait()
			if len(o.requests) > test.requests {
				t.Errorf("%s: %d requests: %v", name, len(o.requests), o.requests)
			}
		})
	}
}

// A reader does not wait for the refusals of another one, after which an additional connection was useful.
func TestConnectionAfterRefusals(t *testing.T) {
	t.Parallel()
	const size, rate = minSpeedupSize - 1<<20, 512 << 10 // without connections that only increase the throughput
	synctest.Test(t, func(t *testing.T) {
		o := &origin{content: randomContent(size), rate: atRate(rate)}
		o.fail = func(n int) error {
			if n == 1 || n == 2 || n == 4 {
				return status(http.StatusServiceUnavailable)
			}
			return nil
		}
		r := newRig(t, o, Options{ExpectedSize: func(digest.Digest) (int64, bool) { return size, true }})
		var pulls sync.WaitGroup
		for _, pull := range []struct {
			at   time.Duration
			part Part
			wait time.Duration // for the slow connection, or after refusals
		}{
			{0, Part{}, size / rate * time.Second},
			{time.Second, Part{First: size / 2, Length: rate}, refusedPause + 2*refusedPause},
			{9 * time.Second, Part{First: size - rate, Length: rate}, refusedPause},
		} {
			pulls.Go(func() {
				time.Sleep(pull.at)
				took, err := r.pull(pull.part)
				// One second for the part, and ticks of the supervisor.
				if most := pull.wait + 2*time.Second; err != nil || took > most {
					t.Errorf("%+v: %v after %s, want at most %s; requests %v", pull.part, err, took, most, o.requests)
				}
			})
		}
		pulls.Wait()
		if len(o.requests) < 6 {
			t.Errorf("%d requests, so not all refusals took place: %v", len(o.requests), o.requests)
		}
	})
}

// An upstream that permits one connection refuses few requests for additional ones, although each of its transfers is successful.
func TestUpstreamWithOneConnection(t *testing.T) {
	t.Parallel()
	const parts, part = 12, 1 << 20
	synctest.Test(t, func(t *testing.T) {
		var open atomic.Bool
		var refused atomic.Int64
		o := &origin{
			content: randomContent(2 * parts * part),
			rate:    atRate(part),
			connected: func(change int) {
				if change < 0 {
					open.Store(false)
				}
			},
			fail: func(int) error {
				time.Sleep(100 * time.Millisecond) // the time to the upstream: another transfer receives bytes meanwhile
				if !open.CompareAndSwap(false, true) {
					refused.Add(1)
					return status(http.StatusServiceUnavailable)
				}
				return nil
			},
		}
		r := newRig(t, o, Options{ExpectedSize: func(digest.Digest) (int64, bool) { return 2 * parts * part, true }})
		var clients sync.WaitGroup
		for client := range int64(2) {
			clients.Go(func() {
				for n := range int64(parts) {
					if _, err := r.pull(Part{First: (client*parts + n) * part, Length: part}); err != nil {
						t.Errorf("part %d of client %d: %v", n, client, err)
					}
				}
			})
		}
		clients.Wait()
		if got := refused.Load(); got > 8 {
			t.Errorf("%d refused requests of %d", got, len(o.requests))
		}
	})
}

// An upstream without ranges whose responses pause is not requested again and again, also if the first request has a range.
func TestPausesWithoutRanges(t *testing.T) {
	t.Parallel()
	const size = 4 << 20
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards calls
		calls := map[int]int{}
		o := &origin{content: randomContent(size), noRanges: true, rate: func(n int) float64 {
			mu.Lock()
			defer mu.Unlock()
			calls[n]++
			// The origin calls it twice for each read.
			if pause := 2; (calls[n]-1)/2 == pause {
				return (32 << 10) / 6. // a pause of 6 s
			}
			return size
		}}
		r := newRig(t, o, Options{ExpectedSize: func(digest.Digest) (int64, bool) { return size, true }})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		part := Part{First: 1 << 20, Length: 1 << 20}
		began := time.Now()
		reader, err := r.Open(ctx, Request{Repository: repository, Digest: r.digest, Part: part})
		if err == nil {
			if _, err = reader.Seek(part.First, io.SeekStart); err == nil {
				_, err = io.CopyN(io.Discard, reader, part.Length)
			}
			err = errors.Join(err, reader.Close())
		}
		if took := time.Since(began); err != nil || took > 10*time.Second {
			t.Errorf("%v after %s", err, took)
		}
		if len(o.requests) > 2 {
			t.Errorf("%d requests", len(o.requests))
		}
	})
}

// upstreams has one origin for each blob.
type upstreams map[digest.Digest]*origin

func (u upstreams) HeadBlob(ctx context.Context, repository string, d digest.Digest) (int64, error) {
	return u[d].HeadBlob(ctx, repository, d)
}

func (u upstreams) Blob(ctx context.Context, repository string, d digest.Digest, part upstream.Range) (*upstream.Blob, error) {
	return u[d].Blob(ctx, repository, d, part)
}

// The additional connections of all blobs together are limited. One that ends makes room for another one.
func TestAdditionalConnectionsOfAllBlobs(t *testing.T) {
	t.Parallel()
	const extra = 1
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards the following variables
		var open, most int
		connected := func(change int) {
			mu.Lock()
			defer mu.Unlock()
			open += change
			most = max(most, open)
		}
		first := &origin{content: randomContent(32 << 20), rate: atRate(4 << 20), connected: connected}
		second := &origin{content: randomContent(64 << 20), rate: atRate(4 << 20), connected: connected}
		r := newRig(t, first, Options{ExtraConnections: extra})
		other := &rig{t: t, origin: second, digest: digest.FromBytes(second.content), Downloads: r.Downloads}
		r.Downloads.upstream = upstreams{r.digest: first, other.digest: second}
		var pulls sync.WaitGroup
		for _, one := range []*rig{r, other} {
			pulls.Go(func() {
				if _, err := one.pull(Part{}); err != nil {
					t.Error(err)
				}
			})
			time.Sleep(time.Second) // the first blob gets the additional connection
		}
		pulls.Wait()
		if most != 2+extra || first.maxOpen != 1+extra || second.maxOpen != 1+extra {
			t.Errorf("%d connections at the same time, %d and %d of each blob, want %d and %d: %v, %v", most, first.maxOpen, second.maxOpen, 2+extra, 1+extra, first.requests, second.requests)
		}
	})
}

// A second connection through a line that is shared brings nothing, so there is no third one.
func TestSharedLine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const size = 32 << 20
		o := &origin{content: randomContent(size)}
		o.rate = func(int) float64 {
			o.mu.Lock()
			defer o.mu.Unlock()
			return 4 << 20 / float64(max(o.open, 1))
		}
		r := newRig(t, o, Options{})
		if _, err := r.pull(Part{}); err != nil {
			t.Fatal(err)
		}
		if o.maxOpen > 2 {
			t.Errorf("%d connections at the same time", o.maxOpen)
		}
	})
}

// The first connection is slow, all others are fast: a repeated pull is as fast as without the cache.
func TestSlowConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &origin{content: randomContent(4 << 20), rate: func(n int) float64 {
			if n == 0 {
				return 1 << 10
			}
			return 100 << 20
		}}
		r := newRig(t, o, Options{})
		first, err := r.open(Part{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		took, err := r.pull(Part{})
		if err != nil || took > time.Second {
			t.Errorf("the repeated pull: %v after %s", err, took)
		}
		if _, err := io.Copy(io.Discard, first); err != nil {
			t.Errorf("the first pull: %v", err)
		}
		if err := first.Close(); err != nil {
			t.Error(err)
		}
		if o.sent > int64(len(o.content))+64<<10 {
			t.Errorf("the upstream sent %d bytes of %d", o.sent, len(o.content))
		}
	})
}

// All connections are slow: replacing them would not help.
func TestSlowLine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &origin{content: randomContent(1 << 20), rate: atRate(16 << 10)}
		r := newRig(t, o, Options{})
		var pulls sync.WaitGroup
		for client := range 10 {
			pulls.Go(func() {
				time.Sleep(time.Duration(client) * 3 * time.Second)
				if _, err := r.pull(Part{}); err != nil {
					t.Error(err)
				}
			})
		}
		pulls.Wait()
		if len(o.requests) > 2 {
			t.Errorf("requests: %v", o.requests)
		}
	})
}

// Slow downloads without readers end, and continue with the next reader, also after a restart.
func TestAbandoned(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			o := &origin{content: randomContent(1 << 20), rate: atRate(32 << 10)}
			r := newRig(t, o, Options{})
			stop := r.start(Options{})
			reader, err := r.open(Part{})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			if err := reader.Close(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			if r.Running(r.digest) || o.open > 0 {
				t.Errorf("after 10 s without readers: running %t, %d connections", r.Running(r.digest), o.open)
			}
			if restart {
				stop()
				r.start(Options{})
			}
			before := len(o.requests)
			if _, err := r.pull(Part{}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			// Both parts of the download replace their slow transfer once. The two transfers run until one is ahead.
			if !r.stored() || o.requests[before] == "0-0" || o.sent > int64(len(o.content))+512<<10 {
				t.Errorf("restart %t: stored %t, the upstream sent %d of %d bytes by %v", restart, r.stored(), o.sent, len(o.content), o.requests)
			}
		})
	}
}

// A fast download continues without readers.
func TestContinuesWithoutReaders(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &origin{content: randomContent(4 << 20), rate: atRate(256 << 10)}
		r := newRig(t, o, Options{})
		reader, err := r.open(Part{})
		if err != nil {
			t.Fatal(err)
		}
		if err := reader.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if !r.stored() || len(o.requests) != 1 {
			t.Errorf("stored %t, requests %v", r.stored(), o.requests)
		}
	})
}

// An upstream that interrupts each response after one byte receives few requests.
func TestInterruptions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &origin{content: randomContent(1 << 20), cut: func(int) int64 { return 1 }}
		r := newRig(t, o, Options{})
		reader, err := r.open(Part{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		if err := reader.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if len(o.requests) > 12 {
			t.Errorf("%d requests", len(o.requests))
		}
	})
}

func TestResumes(t *testing.T) {
	t.Parallel()
	for _, noRanges := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			const size = 3 << 20
			o := &origin{content: randomContent(size), noRanges: noRanges, cut: func(n int) int64 {
				if n < 2 {
					return 1<<20 + 5
				}
				return 0
			}}
			r := newRig(t, o, Options{})
			if _, err := r.pull(Part{}); err != nil {
				t.Errorf("without ranges %t: %v", noRanges, err)
			}
			if !noRanges && o.sent != size {
				t.Errorf("the upstream sent %d bytes of %d by %v", o.sent, size, o.requests)
			}
		})
	}
}

// A client that repeats a failed pull at once continues with the bytes of the failed download, also if the volume is slow.
func TestResumesAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const size, first = 3 << 20, 1<<20 + 5
		var failed atomic.Bool
		o := &origin{
			content: randomContent(size),
			cut:     func(n int) int64 { return map[int]int64{0: first}[n] },
			fail: func(n int) error {
				if n > 0 && !failed.Load() {
					return status(http.StatusServiceUnavailable)
				}
				return nil
			},
		}
		r := &rig{t: t, origin: o, digest: digest.FromBytes(o.content), root: t.TempDir(), fault: func(op volume.Op, _ string) error {
			if op == volume.OpClose {
				time.Sleep(time.Second)
			}
			return nil
		}}
		r.start(Options{})
		if _, err := r.pull(Part{}); err == nil {
			t.Fatal("the first pull did not fail")
		}
		failed.Store(true)
		if _, err := r.pull(Part{}); err != nil {
			t.Error(err)
		}
		if o.sent != size {
			t.Errorf("the upstream sent %d bytes of %d by %v", o.sent, size, o.requests)
		}
	})
}

// The manifest states another size than the upstream. Readers get an error before the first byte, until the digest shows
// that the manifest is wrong.
func TestOtherSize(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &origin{content: randomContent(200 << 10), rate: atRate(100 << 10)}
		r := newRig(t, o, Options{ExpectedSize: func(digest.Digest) (int64, bool) { return 999, true }})
		if took, err := r.pull(Part{}); err == nil || took > time.Second {
			t.Errorf("%v after %s", err, took)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if !r.stored() || len(o.requests) != 1 {
			t.Errorf("stored %t, requests %v", r.stored(), o.requests)
		}
	})
}

// The last byte is withheld until the digest is verified.
func TestOtherContent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &origin{content: randomContent(1000)}
		r := newRig(t, o, Options{})
		r.digest = digest.FromString("other")
		reader, err := r.Open(t.Context(), Request{Repository: repository, Digest: r.digest})
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		got, err := io.ReadAll(reader)
		if !errors.Is(err, store.ErrDigestMismatch) || len(got) >= 1000 {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}

// A client that continues a pull does not wait for the bytes that it has, although another client needs them. If all bytes are
// there, it does not get the last one before the digest is verified either.
func TestContinuedPull(t *testing.T) {
	t.Parallel()
	const size, rate = 8 << 20, 1 << 20
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, &origin{content: randomContent(size), rate: atRate(rate)}, Options{ExpectedSize: func(digest.Digest) (int64, bool) { return size, true }})
		var pulls sync.WaitGroup
		pulls.Go(func() {
			if took, err := r.pull(Part{First: size - 2<<20}); err != nil || took > 2100*time.Millisecond {
				t.Errorf("the last 2 MiB: %v after %s", err, took)
			}
		})
		time.Sleep(time.Second)
		if _, err := r.pull(Part{}); err != nil {
			t.Error(err)
		}
		pulls.Wait()
	})
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, &origin{content: randomContent(size), rate: atRate(rate)}, Options{})
		r.digest = digest.FromString("other")
		first, err := r.open(Part{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * time.Second)
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := r.pull(Part{First: 2 << 20}); !errors.Is(err, store.ErrDigestMismatch) {
			t.Errorf("the rest of other content: %v", err)
		}
	})
}

// A client gets the error of the upstream as long as it has received nothing.
func TestErrors(t *testing.T) {
	t.Parallel()
	refused := &upstream.Error{Op: "GET", Err: errors.New("connection refused")}
	for name, failure := range map[string]error{"not found": status(404), "denied": status(403), "limited": status(429), "failing": status(500), "refused": refused} {
		synctest.Test(t, func(t *testing.T) {
			o := &origin{content: randomContent(1000), fail: func(int) error { return failure }}
			r := newRig(t, o, Options{})
			took, err := r.pull(Part{})
			if !errors.Is(err, failure) || took > time.Second || len(o.requests) != 1 {
				t.Errorf("%s: %v after %s and %d requests", name, err, took, len(o.requests))
			}
		})
	}
}

// A client that pulls a layer in parts does not request the upstream for the later parts.
func TestBusy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &origin{content: randomContent(1 << 20), fail: func(n int) error {
			if n < 4 {
				return &upstream.Error{Op: "GET", Err: upstream.ErrBusy}
			}
			return nil
		}}
		r := newRig(t, o, Options{})
		if _, err := r.pull(Part{}); !errors.Is(err, upstream.ErrBusy) {
			t.Errorf("first part: %v", err)
		}
		took, err := r.pull(Part{First: 1 << 19})
		if err != nil || took > 3*time.Second {
			t.Errorf("later part: %v after %s", err, took)
		}
	})
}

// An upstream that refuses a range, or responds with another one, sends the whole blob to a request without a range.
func TestRefusedRange(t *testing.T) {
	t.Parallel()
	for _, failure := range []error{status(http.StatusRequestedRangeNotSatisfiable), &upstream.Error{Op: "GET", Err: upstream.ErrRange}} {
		for _, part := range []Part{{Length: 300 << 10}, {First: 1 << 20, Length: 1000}} {
			synctest.Test(t, func(t *testing.T) {
				o := &origin{content: randomContent(2 << 20)}
				o.fail = func(n int) error {
					if o.requests[n] != "0-0" {
						return failure
					}
					return nil
				}
				r := newRig(t, o, Options{})
				if took, err := r.pull(part); err != nil || took > time.Second || len(o.requests) > 2 {
					t.Errorf("%v, range from %d: %v after %s and %d requests", failure, part.First, err, took, len(o.requests))
				}
			})
		}
	}
}

func TestImport(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &origin{content: randomContent(1000), fail: notFoundOnce}
		var imported []string
		r := newRig(t, o, Options{Import: func(_ context.Context, repository string, _ digest.Digest) (bool, error) {
			imported = append(imported, repository)
			return true, nil
		}})
		if _, err := r.pull(Part{}); err != nil || !slices.Equal(imported, []string{repository}) {
			t.Errorf("%v, imports %v", err, imported)
		}
	})
}

func TestFollowers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &origin{content: randomContent(1 << 20), rate: atRate(1 << 20)}
		r := newRig(t, o, Options{})
		first, err := r.open(Part{})
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		second, err := r.open(Part{})
		if err != nil {
			t.Fatal(err)
		}
		defer second.Close()
		n, err := io.Copy(io.Discard, second)
		if err != nil || n != 1<<20 || second.Shared() != n || first.Shared() != 0 || second.Outcome() != result.Miss {
			t.Errorf("%d bytes, %v, shared %d and %d, %s", n, err, second.Shared(), first.Shared(), second.Outcome())
		}
	})
}

// An upstream without ranges sends the bytes before the requested ones, too. If the volume fails meanwhile, the client gets an
// error in time to request the upstream itself.
func TestAnswerTimeAfterVolumeError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const size = 8 << 20
		o := &origin{content: randomContent(size), noRanges: true, rate: atRate(100 << 10)}
		var writes atomic.Int64
		r := &rig{t: t, origin: o, digest: digest.FromBytes(o.content), root: t.TempDir(), fault: func(op volume.Op, _ string) error {
			if op == volume.OpWrite && writes.Add(1) > 10 {
				return syscall.EIO
			}
			return nil
		}}
		r.start(Options{})
		began := time.Now()
		reader, err := r.open(Part{First: size - 1})
		if err == nil {
			err = errors.New("the reader was opened")
			defer reader.Close()
		}
		if failed, ok := errors.AsType[*upstream.Error](err); !ok || !failed.Timeout() {
			t.Errorf("got %v, want a timeout", err)
		}
		if took := time.Since(began); took > contract.MaxAnswerTime {
			t.Errorf("took %s", took)
		}
	})
}

// A range that bypasses the volume is requested once, from its first byte up to its end. An upstream that refuses it sends the whole
// blob. The HTTP server handles a range behind the end.
func TestRangeThroughFailedVolume(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	content := randomContent(size)
	for name, test := range map[string]struct {
		refuses bool
		part    Part
		want    []string
	}{
		"range":         {part: Part{First: 1000, Length: 10}, want: []string{"1000-1010"}},
		"first range":   {part: Part{Length: 10}, want: []string{"0-10"}},
		"last range":    {part: Part{First: size - 10, Length: 10}, want: []string{"1048566-0"}},
		"rest":          {part: Part{First: size - 10}, want: []string{"1048566-0"}},
		"suffix":        {part: Part{Suffix: 10}, want: []string{"1048566-0"}},
		"refused range": {refuses: true, part: Part{First: size - 10}, want: []string{"1048566-0", "0-0"}},
		"behind":        {part: Part{First: size}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o := &origin{content: content}
				o.fail = func(n int) error {
					if test.refuses && o.requests[n] != "0-0" {
						return status(http.StatusRequestedRangeNotSatisfiable)
					}
					return nil
				}
				r := &rig{t: t, origin: o, digest: digest.FromBytes(o.content), root: t.TempDir(), fault: func(op volume.Op, _ string) error {
					if op == volume.OpCreate || op == volume.OpOpen {
						return syscall.EROFS
					}
					return nil
				}}
				r.start(Options{ExpectedSize: func(digest.Digest) (int64, bool) { return size, true }})
				if _, err := r.pull(test.part); err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(o.requests, test.want) {
					t.Errorf("requests %v, want %v", o.requests, test.want)
				}
				// A condition of the client can require all of the blob.
				reader, err := r.open(test.part)
				if err != nil {
					t.Fatal(err)
				}
				defer reader.Close()
				if _, err := reader.Seek(0, io.SeekStart); err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(reader); err != nil || !bytes.Equal(got, content) {
					t.Errorf("%d bytes of the whole blob: %v", len(got), err)
				}
			})
		})
	}
}

// A client that bypasses the volume gets an error if the upstream sends a header and then nothing.
func TestFirstByteThroughFailedVolume(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &origin{content: randomContent(1 << 20), rate: atRate(100), headers: func(int) time.Duration { return 24 * time.Second }}
		r := &rig{t: t, origin: o, digest: digest.FromBytes(o.content), root: t.TempDir(), fault: func(op volume.Op, _ string) error {
			if op == volume.OpCreate || op == volume.OpOpen {
				return syscall.EROFS
			}
			return nil
		}}
		r.start(Options{})
		began := time.Now()
		reader, err := r.open(Part{})
		if err == nil {
			err = reader.Close()
			t.Error("the reader was opened before the first byte")
		}
		if took := time.Since(began); took > contract.MaxAnswerTime {
			t.Errorf("took %s: %v", took, err)
		}
	})
}

// Readers of a growing file that cannot be read get their bytes from the upstream.
func TestUnreadableGrowingFile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const size, silentFrom = 1 << 20, 512 << 10
		var unreadable atomic.Bool
		o := &origin{content: randomContent(size)}
		o.rate = func(n int) float64 {
			if n == 0 && o.sent >= silentFrom {
				return 1
			}
			return 0
		}
		r := newRig(t, o, Options{})
		r.fault = func(op volume.Op, _ string) error {
			if op == volume.OpRead && unreadable.Load() {
				return syscall.EIO
			}
			return nil
		}
		r.start(Options{})
		var readers []*Reader
		for range 2 {
			reader, err := r.open(Part{})
			if err != nil {
				t.Fatal(err)
			}
			defer reader.Close()
			readers = append(readers, reader)
		}
		synctest.Wait()
		unreadable.Store(true)
		for i, reader := range readers {
			if i == 1 { // as if the kernel had sent some bytes
				if _, err := reader.Chunk(100); err != nil {
					t.Fatal(err)
				}
				reader.Sent(10, syscall.EIO)
				if chunk, err := reader.Chunk(100); chunk != nil || err != nil {
					t.Errorf("another chunk: %v, %v", chunk, err)
				}
			}
			start := reader.offset
			got, err := io.ReadAll(reader)
			if err != nil || !bytes.Equal(got, o.content[start:]) || reader.Outcome() != result.PassThrough {
				t.Errorf("reader %d: %d bytes, %v, %s", i, len(got), err, reader.Outcome())
			}
		}
		synctest.Wait()
		if r.Running(r.digest) {
			t.Error("the download continues")
		}
	})
}

// The more readers a download has, the larger the pieces that they get from a slow upstream. All of them get the last piece
// as soon as it is verified.
func TestPiecesOfManyReaders(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		readers int
		pieces  int // the maximum for each reader during the 2 s of the download
	}{
		{1, 260},
		{33, 65},
		{200, 25},
	} {
		t.Run(strconv.Itoa(test.readers), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const size, rate = 8 << 20, 4 << 20
				r := newRig(t, &origin{content: randomContent(size), rate: atRate(rate)}, Options{})
				began := time.Now()
				var pulls sync.WaitGroup
				for range test.readers {
					pulls.Go(func() {
						pieces, err := r.countPieces()
						if err != nil || pieces > test.pieces {
							t.Errorf("a reader has read %d pieces, want at most %d; %v", pieces, test.pieces, err)
						}
						if late := time.Since(began) - size/rate*time.Second; late > 10*time.Millisecond {
							t.Errorf("a reader is %s later than the upstream", late)
						}
					})
				}
				pulls.Wait()
			})
		})
	}
}

// countPieces reads the blob and returns the number of reads.
func (r *rig) countPieces() (int, error) {
	reader, err := r.open(Part{})
	if err != nil {
		return 0, err
	}
	defer reader.Close()
	buffer := make([]byte, 512<<10)
	for pieces := 0; ; pieces++ {
		switch _, err := reader.Read(buffer); {
		case err == io.EOF:
			return pieces, nil
		case err != nil:
			return pieces, err
		}
	}
}
