// SPDX-License-Identifier: Apache-2.0

package download

import "time"

const (
	// near is how far a sequential transfer may be behind the byte that a reader needs before the download opens another
	// connection for that reader, in bytes. Below it, waiting costs less than a request.
	near = 1 << 20
	// maxTransfers bounds the connections of one blob, unless it has more readers: without the cache, each has a connection of
	// its own, and each gets an error if its first byte is late.
	maxTransfers = 16
	// slowRate is a throughput, in bytes per second, that no usable connection has for long.
	slowRate = 64 << 10
	// slowAfter is the age at which the throughput of a transfer counts. The age counts from the first byte.
	slowAfter = 2 * time.Second
	// silentAfter is how long a transfer may send nothing while readers wait for it. The first response header of a slow
	// upstream takes longer than the next bytes of a body.
	silentAfter, headerlessAfter = 3 * time.Second, 5 * time.Second
	// stalledAfter is how long a transfer may send nothing before another one for the same bytes is preferred to it.
	stalledAfter = 500 * time.Millisecond
	// slowFactor is how much slower than others a connection is before it is replaced.
	slowFactor = 4
	// retryPatience is how long a reader that joined a running transfer may have to wait for its end: about the time that a
	// pull without the cache needs to begin anew.
	retryPatience = 2 * time.Second
	// linger is how long a slow download continues after its last reader left.
	linger = 2 * time.Second
)

// support is whether the upstream serves ranges. A download whose request for a range was once answered with the whole blob
// requests no ranges any more, whatever the upstream states: each one could be answered with the whole blob again.
type support int

const (
	unknown support = iota
	yes
	no
)

// need is the part of the blob that a reader still requires.
type need struct {
	Span
	// joined reports that the reader arrived while a transfer was running.
	joined bool
}

// facts are the properties of a blob and its upstream, as far as the download has found them out.
type facts struct {
	size int64 // of the blob, -1 while it is unknown
	have spans
	// generation counts how often the bytes were found to be of other content, and removed from have.
	generation int
	ranges     support
	// complete reports that a reader required the whole blob, so the download continues without readers.
	complete bool
	// alone is when the last reader left, zero while there are readers.
	alone time.Time
	// notBefore is when the next connection may be opened, see retries.
	notBefore time.Time
	retries   retries
	refusals  refusals
	// replacing reports that replacing a slow transfer can help.
	replacing bool
	// typical is the throughput of other connections to the upstream, in bytes per second, 0 if it is unknown.
	typical float64
	// delay is how late the supervisor runs, on average over the last ticks.
	delay   time.Duration
	speedup speedup
}

// withoutRanges notes that the upstream serves no ranges. A replacement would begin with the first byte again, and would be
// replaced, too, if the upstream pauses in each response.
func (f *facts) withoutRanges() { f.ranges, f.replacing = no, false }

// missing reports that the blob is not complete.
func (f facts) missing() bool {
	return f.size < 0 || f.size > 0 && f.have.endAt(0) < f.size
}

// view is everything from which next decides.
type view struct {
	facts
	now   time.Time
	flows []flow
	// needs are those of all readers, in the order in which they came.
	needs []need
}

// order is a transfer that is to be started.
type order struct {
	Span
	reason reason
	// replace is the index of a flow for the same bytes that is slow, -1 for none. The slower one of both ends later.
	replace int
}

func newOrder(s Span, why reason) *order { return &order{Span: s, reason: why, replace: -1} }

// reason is the purpose of a transfer, a label value of the metric.
type reason string

const (
	needed    reason = "needed"   // a reader requires the bytes
	remaining reason = "complete" // no reader requires the bytes, but the blob is stored when it is complete
	replacing reason = "replace"  // of a transfer that is slow
	speeding  reason = "speedup"  // an additional connection
)

// next returns the transfer that the download starts next, or nil.
func (v view) next() *order {
	if v.now.Before(v.notBefore) || !v.permitsTransfer() {
		return nil
	}
	if v.size < 0 {
		return v.first()
	}
	for _, n := range v.needs {
		gap := v.have.firstGap(n.Span)
		if gap.empty() {
			continue
		}
		if o := v.serve(n, gap); o != nil {
			return o
		}
	}
	if gap := v.have.firstGap(Span{0, v.size}); v.complete && len(v.flows) == 0 && v.missing() {
		return v.from(gap, remaining)
	}
	return v.split()
}

// permitsTransfer reports that the limits permit another transfer.
func (v view) permitsTransfer() bool {
	return len(v.flows) == 0 || len(v.flows) < max(maxTransfers, len(v.needs)) && !v.now.Before(v.refusals.until)
}

// first requests the part that the first reader requires, because only a response states the size of the blob.
func (v view) first() *order {
	switch {
	case len(v.flows) > 0:
		return nil
	case len(v.needs) > 0 && v.ranges != no:
		return newOrder(v.needs[0].Span, needed)
	case len(v.needs) > 0 || v.complete:
		return newOrder(Span{0, -1}, needed)
	}
	return nil
}

// serve returns the transfer that a reader requires for the bytes that it is missing, nil if it can wait for a running
// one.
func (v view) serve(n need, gap Span) *order {
	i := v.covering(gap.Start)
	if i < 0 {
		if v.ranges == no && len(v.flows) > 0 {
			return nil
		}
		return v.from(gap, needed)
	}
	running := v.flows[i]
	switch {
	case running.replaced:
		return nil
	case v.ranges != no && gap.Start-running.Start > max(near, int64(running.rate)):
		return v.from(gap, needed)
	case v.replacing && v.starves(n, running):
		o := v.from(Span{running.Start, max(gap.End, running.End)}, replacing)
		o.replace = i
		return o
	}
	return nil
}

// from returns a transfer of the first bytes of a gap that no other transfer is about to receive. Without ranges, every
// transfer begins with the first byte of the blob.
func (v view) from(gap Span, why reason) *order {
	if v.ranges == no {
		return newOrder(Span{0, v.size}, why)
	}
	for _, f := range v.flows {
		if f.Start > gap.Start {
			gap.End = min(gap.End, f.Start)
		}
	}
	return newOrder(gap, why)
}

// covering returns the index of the transfer that will receive the byte at the offset first, or -1.
func (v view) covering(offset int64) int {
	best := -1
	for i, f := range v.flows {
		if f.covers(offset) && (best < 0 || f.Start > v.flows[best].Start || v.flows[best].replaced && f.Start == v.flows[best].Start) {
			best = i
		}
	}
	return best
}

// starves reports that a transfer is so slow for a reader that another connection is likely to be faster.
func (v view) starves(n need, f flow) bool {
	silence, tolerated := f.silence(v.now)
	if v.delay >= busy {
		// This process is slow, or silent, so all connections are.
		return silence >= 2*tolerated
	}
	if silence >= tolerated {
		return true
	}
	// A second replacement is as slow as the first one.
	if f.age(v.now) < slowAfter || f.lastByte.IsZero() || f.replacement {
		return false
	}
	if v.ranges == no && f.Start > near {
		return false // another connection would repeat all of it
	}
	left := time.Duration(float64(f.End-f.Start) / max(f.rate, 1) * float64(time.Second))
	slower := n.joined && f.rate < v.typical/slowFactor
	return left > retryPatience && (f.rate < slowRate || slower)
}

// split returns an additional connection for the second half of the largest transfer, if that is likely to increase the
// throughput.
func (v view) split() *order {
	if v.ranges != yes || !v.alone.IsZero() || !v.speedup.allows(v) {
		return nil
	}
	largest := 0
	for i, f := range v.flows {
		if f.End-f.Start > v.flows[largest].End-v.flows[largest].Start {
			largest = i
		}
	}
	f := v.flows[largest]
	middle := f.Start + (f.End-f.Start)/2
	return newOrder(Span{middle, f.End}, speeding)
}

// ends reports that the download has nothing to do until the next reader arrives: the readers left, and either everything
// that was required is there or the upstream is too slow to continue for the readers of the future.
func (v view) ends() bool {
	if v.alone.IsZero() {
		return false
	}
	if len(v.flows) == 0 {
		return !v.complete || v.retries.count > immediate
	}
	if v.now.Sub(v.alone) < linger {
		return false
	}
	var total float64
	for _, f := range v.flows {
		if f.age(v.now) < slowAfter {
			return false
		}
		total += f.rate
	}
	return total < slowRate
}
