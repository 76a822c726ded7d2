// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"io"
	"strconv"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

func TestMakeRoom(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		// bytes is what is wanted; objects of 10 bytes each are there.
		bytes int64
		// lasts is how often trying fails after enough has gone.
		lasts int
		want  error
		took  time.Duration
		left  int
	}{
		{"one object goes", 10, 0, nil, 0, 4},
		{"three objects go", 21, 0, nil, 0, 2},
		{"the volume shows it late", 10, 5, nil, 5 * roomInterval, 4},
		{"it is never enough", 1000, 1 << 20, syscall.ENOSPC, roomTimeout, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, err := Open(t.TempDir(), Options{
					Policy: evict.Policy{TTL: time.Hour, HighWatermark: 100, LowWatermark: 100},
					Volume: func() (evict.Volume, error) { return evict.Volume{Used: 50, Limit: 100}, nil },
				})
				if err != nil {
					t.Fatal(err)
				}
				for n := range 5 {
					sized(t, s, n, 10)
				}
				stop := maintain(t, s)
				defer stop()
				began, tries := time.Now(), 0
				err = s.makeRoom(t.Context(), test.bytes, func() error {
					if tries++; tries <= test.lasts {
						return syscall.ENOSPC
					}
					return nil
				})
				if !errors.Is(err, test.want) {
					t.Errorf("%v, want %v", err, test.want)
				}
				// Deletions and the pauses after them take some real or fake time, too.
				if took := time.Since(began); took < test.took || took > test.took+5*maxRest {
					t.Errorf("took %s, want %s", took, test.took)
				}
				synctest.Wait()
				if got := len(s.index.Uses()); got != test.left {
					t.Errorf("%d objects are left, want %d", got, test.left)
				}
			})
		})
	}
}

// Nobody waits for room that cannot be made.
func TestCanMakeRoom(t *testing.T) {
	t.Parallel()
	deletes := evict.Policy{TTL: time.Hour, HighWatermark: 90, LowWatermark: 80}
	for name, test := range map[string]struct {
		policy  evict.Policy
		size    int64
		learned bool
		want    bool
	}{
		"fits":                                   {deletes, 80, true, true},
		"larger than what stays":                 {deletes, 81, true, false},
		"nothing may be deleted":                 {evict.Policy{HighWatermark: 90, LowWatermark: 80}, 1, true, false},
		"what is on the volume is not known yet": {deletes, 1, false, false},
	} {
		s, err := Open(t.TempDir(), Options{
			Policy: test.policy,
			Volume: func() (evict.Volume, error) { return evict.Volume{Used: 100, Limit: 100}, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		s.learned.Store(test.learned)
		if got := s.canMakeRoom(test.size); got != test.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestMakeRoomEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// Nobody runs Maintain, so the demand is never taken.
	if err := s.makeRoom(ctx, 1, func() error { return syscall.ENOSPC }); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
}

func TestPromises(t *testing.T) {
	t.Parallel()
	var p promises
	met := func(d demand) bool {
		select {
		case <-d.done:
			return true
		default:
			return false
		}
	}
	first, second := demand{10, make(chan struct{})}, demand{5, make(chan struct{})}
	if due := p.add(first, 100); due != 110 {
		t.Errorf("the first is due at %d", due)
	}
	if due := p.add(second, 104); due != 115 {
		t.Errorf("the second is due at %d: the same bytes were promised twice", due)
	}
	p.keep(109)
	if met(first) {
		t.Error("the first was met too early")
	}
	p.keep(110)
	if !met(first) || met(second) {
		t.Errorf("after 110 bytes: first %t, second %t", met(first), met(second))
	}
	p.keep(115)
	if !met(second) || len(p) != 0 {
		t.Errorf("after 115 bytes: second %t, %d left", met(second), len(p))
	}
}

// limitedFile is on a volume that cannot reserve space, because it does not tell which file it is.
type limitedFile struct{ File }

func TestReserveWithoutSupport(t *testing.T) {
	t.Parallel()
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.create("x")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, file := range []File{f, limitedFile{f}} {
		if err := allocate(file, 4096); err != nil {
			t.Error(err)
		}
	}
	if _, err := io.WriteString(f, "content"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100)
	n, err := f.ReadAt(got, 0)
	if err != io.EOF || string(got[:n]) != "content" {
		t.Errorf("the file has %s and %v: reserving changes the size", strconv.Quote(string(got[:n])), err)
	}
}
