// SPDX-License-Identifier: Apache-2.0

package download

import "time"

const (
	// minSpeedupSize is the size of the smallest blob with several connections, in bytes.
	minSpeedupSize = 16 << 20
	// minSplit is the least that a connection must have left to be split, in bytes.
	minSplit = 4 << 20
	// worthwhile is the remaining time of a transfer below which another connection is not worth its request. Neither is it if
	// the header takes half of that time.
	worthwhile = 2 * time.Second
	// maxConnections bounds the connections that increase the throughput of one blob. Registries limit the throughput of a
	// connection to about 25 MB/s (containerd issue 8160); four of them use a 1 Gbit/s line.
	maxConnections = 4
	// trial is how long the effect of an additional connection is observed: longer than the window of the meter, because TCP
	// needs some round trips to reach its rate.
	trial = 1250 * time.Millisecond
	// gain is the least increase of the throughput that an additional connection must bring. On a busy machine, the
	// throughput changes by a fifth for other reasons.
	gain = 1.25
	// maxSplits bounds the additional requests for one blob. Registries count requests.
	maxSplits = 6
	// upstreamBound is the least share of time in which a transfer waits for the upstream. Below it, the volume is the
	// bottleneck. Then the buffers of the connection are full, too, and their content, some MiB, would be lost at the end of
	// a transfer that was split.
	upstreamBound = 0.8
	// busy is the delay of the supervisor from which on the processor is the bottleneck. Another connection needs more of it,
	// and the buffers of the connections fill as soon as the upstream gets more of the same processor than the cache. A herd
	// of 33 clients on two processors has delays of 20 to 140 ms.
	busy = 10 * time.Millisecond
)

// speedup decides how many connections a download uses. It is a value: its methods return the changed one.
type speedup struct {
	// connections is the number that was found to be useful, at least 1.
	connections int
	// splits is the number of additional connections so far.
	splits int
	// began is the start of a trial with one connection more, zero between trials.
	began time.Time
	// before is the throughput before the trial, in bytes per second.
	before float64
	// ended reports that no further trial takes place, because the last one had no effect or the upstream limits requests.
	ended bool
}

func newSpeedup() speedup { return speedup{connections: 1} }

// allows reports that one more connection is likely to increase the throughput of the download.
func (s speedup) allows(v view) bool {
	if v.delay >= busy || s.splits >= maxSplits || v.size < minSpeedupSize || len(v.flows) == 0 || len(v.flows) >= maxConnections || !s.began.IsZero() {
		return false
	}
	var largest flow
	for _, f := range v.flows {
		if f.lastByte.IsZero() || f.replaced || f.age(v.now) < slowAfter/2 || f.waits < upstreamBound {
			return false
		}
		if f.End-f.Start > largest.End-largest.Start {
			largest = f
		}
	}
	left := largest.End - largest.Start
	if left < minSplit || float64(left) < largest.rate*max(worthwhile, 2*largest.header).Seconds() {
		return false
	}
	return len(v.flows) < s.connections || !s.ended
}

// add returns the state after one more connection was opened.
func (s speedup) add(v view) speedup {
	s.splits++
	if len(v.flows)+1 > s.connections {
		s.began, s.before = v.now, total(v.flows)
	}
	return s
}

// judge ends a trial that was long enough.
func (s speedup) judge(v view) speedup {
	if s.began.IsZero() || v.now.Sub(s.began) < trial {
		return s
	}
	s.began = time.Time{}
	if total(v.flows) >= s.before*gain {
		s.connections++
	} else {
		s.ended = true
	}
	return s
}

// limit returns the state after the upstream refused a request because there were too many.
func (s speedup) limit() speedup {
	s.ended, s.connections, s.began = true, 1, time.Time{}
	return s
}

func total(flows []flow) float64 {
	var sum float64
	for _, f := range flows {
		sum += f.rate
	}
	return sum
}
