// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Health is the state of a volume at one moment.
type Health struct {
	State State
	// Message describes the cause for an operator. Empty if the state is OK.
	Message string
	// Since is the time at which the state began.
	Since time.Time
}

// Limits of probes.
const (
	// maxProbes bounds the probes in progress. A probe that is blocked in the kernel may never end, so another one starts
	// after the probe interval.
	maxProbes = 3
	// minProbeGap bounds the rate of the probes that failed calls cause.
	minProbeGap = 250 * time.Millisecond
)

// gate decides whether calls may start.
type gate struct {
	// hung rejects new calls.
	hung bool
	// released is closed when a probe finds the volume hung: the callers of calls in progress do not wait any longer. It is
	// replaced when the volume responds again.
	released chan struct{}
}

// health is the only place that decides on the state of a volume.
type health struct {
	interval, timeout time.Duration
	maxCalls          int64
	log               *slog.Logger
	metrics           *metrics
	// blocked returns the number of abandoned calls.
	blocked func() int64
	// wake requests a probe. Capacity 1.
	wake chan struct{}
	// gate is replaced with mu held.
	gate atomic.Pointer[gate]

	mu      sync.Mutex // guards the following fields
	current Health
	// suspect are the operations that have failed since a probe of them succeeded, with the time of the last failure.
	suspect map[Op]time.Time
	// monitored is set while Monitor runs.
	monitored bool
}

func newHealth(o Options) *health {
	h := &health{
		interval: o.ProbeInterval, timeout: o.ProbeTimeout, maxCalls: int64(o.MaxCalls), log: o.Logger,
		wake: make(chan struct{}, 1), current: Health{State: OK, Since: time.Now()}, suspect: map[Op]time.Time{},
	}
	h.gate.Store(&gate{released: make(chan struct{})})
	h.metrics = newMetrics(o.Registerer, func() State { return h.get().State })
	return h
}

func (h *health) get() Health {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.current
}

// isHung reports whether calls fail immediately.
func (h *health) isHung() bool { return h.gate.Load().hung }

// observe records the result of a call.
func (h *health) observe(op Op, err error) {
	if err == nil {
		return
	}
	state := classify(err)
	if state == OK {
		return
	}
	h.metrics.failures.WithLabelValues(string(state)).Inc()
	h.mu.Lock()
	h.suspect[op] = time.Now()
	if state.severity() > h.current.State.severity() {
		h.set(state, err.Error())
	}
	h.mu.Unlock()
	h.requestProbe()
}

// callReturned is called after an abandoned call has ended, which can mean that the volume responds again.
func (h *health) callReturned() {
	h.mu.Lock()
	if !h.monitored && h.current.State == Hung && h.blocked() == 0 {
		clear(h.suspect)
		h.set(OK, "")
	}
	h.mu.Unlock()
	h.requestProbe()
}

func (h *health) requestProbe() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// set changes the state. The caller holds mu.
func (h *health) set(state State, message string) {
	before := h.current
	if state == before.State {
		h.current.Message = message
		return
	}
	h.current = Health{State: state, Message: message, Since: time.Now()}
	released := h.gate.Load().released
	if before.State == Hung {
		released = make(chan struct{})
	}
	h.gate.Store(&gate{hung: state == Hung, released: released})
	if state == OK {
		h.log.Info("Volume is usable again", "before", before.State, "duration", time.Since(before.Since).String())
		return
	}
	h.log.Warn("Volume is not fully usable", "state", state, "before", before.State, "error", message)
}

// noResult marks the volume as hung, because a probe has no result, and releases the callers of all calls in progress.
func (h *health) noResult() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.set(Hung, fmt.Sprintf("a probe of the volume has no result after %s", h.timeout))
	released := h.gate.Load().released
	select {
	case <-released:
	default:
		close(released)
	}
}

// suspects returns the operations that the next probe has to execute additionally.
func (h *health) suspects() map[Op]bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	ops := map[Op]bool{}
	for op := range h.suspect {
		ops[op] = true
	}
	return ops
}

// probed records the results of a probe that has ended within the probe timeout.
func (h *health) probed(began time.Time, results probeResults) {
	h.mu.Lock()
	defer h.mu.Unlock()
	state, message := OK, ""
	for op, err := range results {
		if err == nil {
			if h.suspect[op].Before(began) {
				delete(h.suspect, op)
			}
			continue
		}
		if s := probeState(err); s.severity() > state.severity() {
			state, message = s, err.Error()
		}
	}
	if n := h.blocked(); state != Hung && n > h.maxCalls/2 {
		state, message = Hung, fmt.Sprintf("%d calls have no result", n)
	}
	if state.severity() < h.current.State.severity() {
		for _, failed := range h.suspect {
			// The probe does not disprove a call that failed after its start.
			if !failed.Before(began) {
				h.requestProbe()
				return
			}
		}
	}
	h.set(state, message)
}

// probeState returns the state that a failed probe indicates. Unlike other calls, those of a probe must succeed.
func probeState(err error) State {
	if state := classify(err); state != OK {
		return state
	}
	if errors.Is(err, errCannotWrite) {
		return ReadOnly
	}
	return Failed
}

// Monitor probes the volume until ctx ends, see the package documentation. It creates the directory registry-cache in the
// root if it is missing, and writes files with names that start with "probe" in it. Monitor may run once at a time. After the
// end of ctx it waits for the probe in progress, unless that is blocked in the kernel.
func (f *FS) Monitor(ctx context.Context) {
	h, p := f.health, newProber(f)
	h.setMonitored(true)
	defer h.setMonitored(false)
	type ended struct {
		number  int
		results probeResults
	}
	results := make(chan ended, maxProbes)
	expired := make(chan int)
	began := map[int]time.Time{} // the probes in progress
	number := 0
	var last time.Time
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-next.C:
			next.Reset(h.interval)
			if len(began) == maxProbes {
				continue
			}
			number++
			last = time.Now()
			began[number] = last
			go func(number int, suspects map[Op]bool) {
				results <- ended{number, p.probe(suspects)}
			}(number, h.suspects())
			go func(number int) {
				select {
				case <-time.After(h.timeout):
				case <-ctx.Done():
					return
				}
				select {
				case expired <- number:
				case <-ctx.Done():
				}
			}(number)
		case <-h.wake:
			if len(began) == 0 {
				next.Reset(max(0, minProbeGap-time.Since(last)))
			}
		case number := <-expired:
			if _, inProgress := began[number]; inProgress {
				h.noResult()
			}
		case r := <-results:
			start := began[r.number]
			delete(began, r.number)
			if time.Since(start) >= h.timeout {
				// The volume responds again, perhaps. A new probe shows whether it does so in time.
				next.Reset(0)
				continue
			}
			h.probed(start, r.results)
		case <-ctx.Done():
			limit := time.After(h.timeout)
			for range began {
				select {
				case <-results:
				case <-limit:
					return
				}
			}
			return
		}
	}
}

func (h *health) setMonitored(monitored bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.monitored = monitored
}
