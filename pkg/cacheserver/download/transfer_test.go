// SPDX-License-Identifier: Apache-2.0

package download

import (
	"net/http"
	"testing"
	"time"
)

// rivals returns a transfer and its replacement. lost counts how often each was canceled.
func rivals(now time.Time) (slow, replacement *transfer, lost *[2]int) {
	d := newDownload(nil, "sha256:0", mib, repository)
	lost = &[2]int{}
	slow, replacement = newTransfer(d, nil, Span{0, mib}, now), newTransfer(d, nil, Span{0, mib}, now)
	slow.replacement, replacement.replaces = replacement, slow
	slow.cancel = func(error) { lost[0]++ }
	replacement.cancel = func(error) { lost[1]++ }
	return slow, replacement, lost
}

// The bytes of two transfers never overlap in such a way that both end.
func TestOneOfTwoTransfersContinues(t *testing.T) {
	t.Parallel()
	slow, replacement, lost := rivals(now)
	slow.lastByte, replacement.lastByte = now, now
	replacement.compete(now)
	slow.compete(now)
	if *lost != [2]int{0, 1} {
		t.Errorf("canceled %d and %d times, want only the one that was second", lost[0], lost[1])
	}
	slow, replacement, lost = rivals(now)
	slow.lastByte, replacement.lastByte = now.Add(-stalledAfter), now
	replacement.compete(now)
	slow.compete(now)
	if *lost != [2]int{1, 0} {
		t.Errorf("canceled %d and %d times, want only the one that stalled", lost[0], lost[1])
	}
}

// A connection is not slow because the volume is.
func TestSlowWriteIsNoSilence(t *testing.T) {
	t.Parallel()
	d := newDownload(nil, "sha256:0", mib, repository)
	tr := newTransfer(d, nil, Span{0, mib}, time.Now())
	tr.claim(1, 0)
	later := time.Now().Add(time.Minute)
	if silence, _ := tr.flow(later).silence(later); silence != 0 {
		t.Errorf("silent for %s while it writes", silence)
	}
	tr.wrote(1)
	if silence, _ := tr.flow(later).silence(later); silence < 59*time.Second {
		t.Errorf("silent for %s after it has written", silence)
	}
}

// Additional connections that the upstream has refused are requested again without a pause after one that brought bytes.
func TestRefusalsAfterTransfer(t *testing.T) {
	t.Parallel()
	earlier := refusals{count: 3, until: time.Now().Add(time.Hour)}
	for name, test := range map[string]struct {
		beside bool
		err    error
		fresh  int64
		want   refusals
	}{
		"complete":                  {true, nil, enough, refusals{}},
		"complete, few bytes":       {true, nil, enough - 1, earlier},
		"complete, was alone":       {false, nil, enough, earlier},
		"obsolete":                  {true, errObsolete, enough, refusals{}},
		"obsolete, few bytes":       {true, errObsolete, enough - 1, earlier},
		"interrupted":               {true, status(http.StatusServiceUnavailable), enough, refusals{}},
		"interrupted, was alone":    {false, status(http.StatusServiceUnavailable), enough, earlier},
		"refused during the pause":  {true, status(http.StatusServiceUnavailable), 0, earlier},
		"the volume cannot be used": {true, errStorage, enough, earlier},
	} {
		d := newDownload(New(nil, nil, nil, Options{}), "sha256:0", mib, repository)
		d.facts.refusals = earlier
		ends, continues := newTransfer(d, nil, Span{0, mib}, now), newTransfer(d, nil, Span{0, mib}, now)
		d.transfers = []*transfer{ends, continues}
		ends.fresh, ends.beside = test.fresh, test.beside
		(&supervisor{d, nil}).ended(ends, test.err)
		if got := d.facts.refusals; got != test.want {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}
