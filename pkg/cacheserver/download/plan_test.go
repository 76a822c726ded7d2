// SPDX-License-Identifier: Apache-2.0

package download

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

const mib = 1 << 20

var now = time.Unix(1_000_000, 0)

// running returns a transfer that has sent bytes until now.
func running(start, end int64, age time.Duration, rate float64) flow {
	return flow{Span: Span{start, end}, began: now.Add(-age), lastByte: now, rate: rate, waits: 1}
}

// late returns a transfer that has sent bytes since age, and none for as long before.
func late(start, end int64, age time.Duration, rate float64) flow {
	f := running(start, end, 2*age, rate)
	f.header = age
	return f
}

// silent returns a transfer that has received nothing for some time.
func silent(start, end int64, silence time.Duration) flow {
	f := running(start, end, silence+time.Second, 0)
	f.lastByte = now.Add(-silence)
	return f
}

func TestNext(t *testing.T) {
	t.Parallel()
	const size = 64 * mib
	whole := need{Span: Span{0, size}}
	known := facts{size: size, replacing: true, speedup: newSpeedup()}
	with := func(change func(*facts)) facts {
		f := known
		change(&f)
		return f
	}
	ranges := with(func(f *facts) { f.ranges = yes; f.have.add(Span{0, mib}) })
	for _, test := range []struct {
		name  string
		facts facts
		flows []flow
		needs []need
		want  *order
	}{
		{"no readers", known, nil, nil, nil},
		{"first reader", known, nil, []need{whole}, newOrder(Span{0, size}, needed)},
		{"unknown size", with(func(f *facts) { f.size = -1 }), nil, []need{{Span: Span{0, -1}}}, newOrder(Span{0, -1}, needed)},
		{"unknown size, range", with(func(f *facts) { f.size = -1 }), nil, []need{{Span: Span{mib, 2 * mib}}}, newOrder(Span{mib, 2 * mib}, needed)},
		{"unknown size, waiting", with(func(f *facts) { f.size = -1 }), []flow{running(0, -1, 0, 0)}, []need{whole}, nil},
		{"range", known, nil, []need{{Span: Span{8 * mib, 9 * mib}}}, newOrder(Span{8 * mib, 9 * mib}, needed)},
		{"behind present bytes", with(func(f *facts) { f.have.add(Span{0, mib}) }), nil, []need{whole}, newOrder(Span{mib, size}, needed)},
		{"up to present bytes", with(func(f *facts) { f.have.add(Span{mib, size}) }), nil, []need{whole}, newOrder(Span{0, mib}, needed)},
		{"all is there", with(func(f *facts) { f.have.add(Span{0, size}) }), nil, []need{whole}, nil},
		{"soon there", known, []flow{running(mib, size, time.Second, 50*mib)}, []need{{Span: Span{2 * mib, 3 * mib}}}, nil},
		{"far ahead", known, []flow{running(mib, size, time.Second, mib)}, []need{{Span: Span{32 * mib, 33 * mib}}},
			newOrder(Span{32 * mib, 33 * mib}, needed)},
		{"far ahead without ranges", with(func(f *facts) { f.ranges = no }), []flow{running(mib, size, time.Second, mib)}, []need{{Span: Span{32 * mib, 33 * mib}}}, nil},
		{"without ranges from the start", with(func(f *facts) { f.ranges = no; f.have.add(Span{0, mib}) }), nil, []need{whole}, newOrder(Span{0, size}, needed)},
		{"up to another transfer", known, []flow{running(32*mib, 33*mib, time.Second, mib)}, []need{whole}, newOrder(Span{0, 32 * mib}, needed)},
		{"pause after interruptions", with(func(f *facts) { f.notBefore = now.Add(time.Second) }), nil, []need{whole}, nil},
		{"far ahead after a refusal", with(func(f *facts) { f.refusals.until = now.Add(time.Second) }), []flow{running(mib, size, time.Second, mib)}, []need{{Span: Span{32 * mib, 33 * mib}}}, nil},
		{"the only transfer after a refusal", with(func(f *facts) { f.refusals.until = now.Add(time.Second) }), nil, []need{whole}, newOrder(Span{0, size}, needed)},
		{"rest without readers", with(func(f *facts) { f.complete = true; f.have.add(Span{0, mib}) }), nil, nil, newOrder(Span{mib, size}, remaining)},
		{"silent body", known, []flow{silent(mib, size, silentAfter)}, []need{whole}, nil},
		{"silent body, reader at the frontier", with(func(f *facts) { f.have.add(Span{0, mib}) }), []flow{silent(mib, size, silentAfter)}, []need{whole},
			&order{Span{mib, size}, replacing, 0}},
		{"silent body on a busy processor", with(func(f *facts) { f.have.add(Span{0, mib}); f.delay = busy }), []flow{silent(mib, size, silentAfter)}, []need{whole}, nil},
		{"silent body for long on a busy processor", with(func(f *facts) { f.have.add(Span{0, mib}); f.delay = busy }), []flow{silent(mib, size, 2*silentAfter)}, []need{whole},
			&order{Span{mib, size}, replacing, 0}},
		{"useless replacement", with(func(f *facts) { f.have.add(Span{0, mib}); f.replacing = false }), []flow{silent(mib, size, silentAfter)}, []need{whole}, nil},
		{"slow", with(func(f *facts) { f.have.add(Span{0, mib}) }), []flow{running(mib, size, slowAfter, slowRate-1)}, []need{whole},
			&order{Span{mib, size}, replacing, 0}},
		{"slow at first after a late header", with(func(f *facts) { f.have.add(Span{0, mib}) }), []flow{late(mib, size, slowAfter-1, slowRate-1)}, []need{whole}, nil},
		{"late header", ranges, []flow{late(mib, size, 16*time.Second, 2*mib)}, []need{whole}, nil},
		{"slower than others, for a reader that joined", with(func(f *facts) { f.have.add(Span{0, mib}); f.typical = 50 * mib }), []flow{running(mib, size, slowAfter, mib)},
			[]need{{whole.Span, true}}, &order{Span{mib, size}, replacing, 0}},
		{"slower than others on a busy processor", with(func(f *facts) { f.have.add(Span{0, mib}); f.typical = 50 * mib; f.delay = busy }), []flow{running(mib, size, slowAfter, mib)},
			[]need{{whole.Span, true}}, nil},
		{"slower than others, for the first reader", with(func(f *facts) { f.have.add(Span{0, mib}); f.typical = 50 * mib }), []flow{running(mib, size, slowAfter, mib)},
			[]need{whole}, nil},
		{"connection is the bottleneck", with(func(f *facts) { f.ranges = yes; f.have.add(Span{0, mib}) }), []flow{running(mib, size, 2*time.Second, mib)}, []need{whole},
			newOrder(Span{mib + (size-mib)/2, size}, speeding)},
		{"fast enough", ranges, []flow{running(mib, size, 2*time.Second, 50*mib)}, []need{whole}, nil},
		{"volume is the bottleneck", ranges, []flow{{Span: Span{mib, size}, began: now.Add(-2 * time.Second), lastByte: now, rate: mib, waits: 0.1}}, []need{whole}, nil},
		{"processor is the bottleneck", with(func(f *facts) { f.ranges = yes; f.have.add(Span{0, mib}); f.delay = busy }), []flow{running(mib, size, 2*time.Second, mib)},
			[]need{whole}, nil},
		{"limited upstream", with(func(f *facts) { f.ranges = yes; f.have.add(Span{0, mib}); f.speedup = f.speedup.limit() }), []flow{running(mib, size, 2*time.Second, mib)}, []need{whole}, nil},
	} {
		v := view{facts: test.facts, now: now, flows: test.flows, needs: test.needs}
		if test.name == "silent body" {
			v.needs = []need{{Span: Span{size - mib, size}}} // which has a transfer of its own
			v.flows = append(v.flows, running(size-mib, size, time.Second, mib))
		}
		got := v.next()
		if (got == nil) != (test.want == nil) || got != nil && *got != *test.want {
			t.Errorf("%s: got %+v, want %+v", test.name, got, test.want)
		}
	}
}

func TestEnds(t *testing.T) {
	t.Parallel()
	alone := now.Add(-linger)
	for _, test := range []struct {
		name string
		view view
		want bool
	}{
		{"readers", view{}, false},
		{"range was read", view{facts: facts{alone: alone}}, true},
		{"rest is missing", view{facts: facts{alone: alone, complete: true}}, false},
		{"too many interruptions", view{facts: facts{alone: alone, complete: true, retries: retries{count: immediate + 1}}}, true},
		{"slow", view{facts: facts{alone: alone, complete: true}, flows: []flow{running(0, mib, slowAfter, slowRate-1)}}, true},
		{"fast", view{facts: facts{alone: alone, complete: true}, flows: []flow{running(0, mib, slowAfter, slowRate)}}, false},
		{"young after a late header", view{facts: facts{alone: alone, complete: true}, flows: []flow{late(0, mib, slowAfter-1, 0)}}, false},
		{"young", view{facts: facts{alone: alone, complete: true}, flows: []flow{running(0, mib, 0, 0)}}, false},
		{"just left", view{facts: facts{alone: now, complete: true}, flows: []flow{running(0, mib, slowAfter, 0)}}, false},
	} {
		test.view.now = now
		if got := test.view.ends(); got != test.want {
			t.Errorf("%s: %t", test.name, got)
		}
	}
}

func TestRetries(t *testing.T) {
	t.Parallel()
	var r retries
	for i, want := range []time.Duration{0, 0, 0, firstPause, 2 * firstPause, 4 * firstPause, 8 * firstPause, 16 * firstPause, maxPause, maxPause} {
		r = r.after(1, false)
		if got, again := r.pause(); got != want || !again {
			t.Errorf("interruption %d: %s, %t, want %s", i, got, again, want)
		}
	}
	if r.after(enough, true).count == 0 || r.after(enoughAlone, true).count != 0 {
		t.Error("without readers, fewer bytes count as progress")
	}
	r = r.after(enough, false)
	if got, again := r.pause(); got != 0 || !again {
		t.Errorf("after progress: %s, %t", got, again)
	}
	for i := range maxFruitless {
		if _, again := r.pause(); !again {
			t.Errorf("no request after %d without a byte", i)
		}
		r = r.after(0, false)
	}
	if _, again := r.pause(); again {
		t.Errorf("another request after %d without a byte", maxFruitless)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	broken := &upstream.Error{Err: errors.New("connection reset")}
	refused := &upstream.Error{StatusCode: http.StatusServiceUnavailable}
	later := &upstream.Error{StatusCode: http.StatusTooManyRequests, RetryAfter: 10 * time.Second}
	for _, test := range []struct {
		name    string
		before  refusals
		failure *upstream.Error
		fresh   int64
		want    refusals
	}{
		{"first broken transfer", refusals{}, broken, 0, refusals{1, now.Add(firstPause)}},
		{"first refusal", refusals{}, refused, 0, refusals{1, now.Add(refusedPause)}},
		{"third refusal", refusals{2, now}, refused, 0, refusals{3, now.Add(4 * refusedPause)}},
		{"many refusals", refusals{99, now}, refused, 0, refusals{100, now.Add(maxRefusedPause)}},
		{"Retry-After", refusals{}, later, 0, refusals{1, now.Add(10 * time.Second)}},
		{"two transfers at the same time", refusals{1, now.Add(time.Second)}, refused, 0, refusals{1, now.Add(time.Second)}},
		{"some bytes", refusals{1, now}, broken, enough - 1, refusals{2, now.Add(2 * firstPause)}},
		{"progress", refusals{5, now}, broken, enough, refusals{}},
	} {
		if got := test.before.after(test.failure, test.fresh, now); got != test.want {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
	}
}

func TestSpeedup(t *testing.T) {
	t.Parallel()
	view := func(flows int, rate float64) view {
		v := view{facts: facts{size: 64 * mib}, now: now}
		for range flows {
			v.flows = append(v.flows, running(0, 64*mib, time.Minute, rate))
		}
		return v
	}
	s := newSpeedup()
	if !s.allows(view(1, mib)) {
		t.Fatal("no second connection")
	}
	s = s.add(view(1, mib))
	if s.allows(view(2, mib)) {
		t.Error("another connection during the trial")
	}
	s.began = now.Add(-trial)
	useful := s.judge(view(2, mib))
	if !useful.allows(view(2, mib)) || useful.connections != 2 {
		t.Errorf("after a useful trial: %+v", useful)
	}
	useless := s.judge(view(2, mib/2))
	if useless.allows(view(2, mib/2)) || useless.connections != 1 {
		t.Errorf("after a useless trial: %+v", useless)
	}
	if four := (speedup{connections: maxConnections}); four.allows(view(maxConnections, mib)) || !four.allows(view(1, mib)) {
		t.Error("not exactly the connections that were found to be useful")
	}
}

// A processor remains busy for some seconds after the last late tick.
func TestAverageDelay(t *testing.T) {
	t.Parallel()
	var average time.Duration
	for range 4 {
		average = averageDelay(average, 60*time.Millisecond)
	}
	for at, want := range map[int]bool{0: true, 8: true, 60: false} {
		later := average
		for range at {
			later = averageDelay(later, time.Millisecond)
		}
		if got := later >= busy; got != want {
			t.Errorf("%d ticks after the last late one: average %s, busy %t", at, later, got)
		}
	}
	if once := averageDelay(0, 30*time.Millisecond); once >= busy {
		t.Errorf("after one late tick: %s", once)
	}
}
