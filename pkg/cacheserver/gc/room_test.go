// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"context"
	"errors"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/cacheserver/volume/volumetest"
)

func TestMakeRoom(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		// bytes is the requested space; objects of 10 bytes each are there.
		bytes int64
		// size of the object, if some of its space is reserved already.
		size int64
		// lasts is how often trying fails after enough has gone.
		lasts int
		want  error
		took  time.Duration
		left  int
	}{
		{"one object goes", 10, 0, 0, nil, 0, 4},
		{"three objects go", 21, 0, 0, nil, 0, 2},
		{"one object goes for the rest of a large one", 10, 1000, 0, nil, 0, 4},
		{"the volume shows it late", 10, 0, 5, nil, 5 * roomInterval, 4},
		{"the volume does not show it", 50, 0, 1 << 20, syscall.ENOSPC, roomTimeout, 0},
		{"all objects are not enough", 1000, 0, 1 << 20, syscall.ENOSPC, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := open(t, t.TempDir(), setup{
					limits:     evict.Limits{TTL: time.Hour, HighWatermark: 100, LowWatermark: 100},
					fileSystem: func() (Space, error) { return Space{Bytes: evict.Amount{Used: 50, Limit: 2000}}, nil },
				})
				for n := range 5 {
					sized(t, s, n, 10)
				}
				stop := run(t, s)
				defer stop()
				began, tries := time.Now(), 0
				err := s.MakeRoom(t.Context(), max(test.bytes, test.size), test.bytes, func() error {
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
				if got := len(s.index.Records()); got != test.left {
					t.Errorf("%d objects are left, want %d", got, test.left)
				}
			})
		})
	}
}

// No request waits for space that cannot be freed.
func TestCanMakeRoom(t *testing.T) {
	t.Parallel()
	deletes := evict.Limits{TTL: time.Hour, HighWatermark: 90, LowWatermark: 80}
	for name, test := range map[string]struct {
		limits  evict.Limits
		size    int64
		indexed bool
		want    bool
	}{
		"fits":                                   {deletes, 80, true, true},
		"larger than what stays":                 {deletes, 81, true, false},
		"nothing may be deleted":                 {evict.Limits{HighWatermark: 90, LowWatermark: 80}, 1, true, false},
		"what is on the volume is not known yet": {deletes, 1, false, false},
	} {
		s := open(t, t.TempDir(), setup{
			limits:     test.limits,
			fileSystem: func() (Space, error) { return Space{Bytes: evict.Amount{Used: 100, Limit: 100}}, nil },
		})
		s.indexed.Store(test.indexed)
		if got := s.canMakeRoom(test.size); got != test.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// A volume that does not tell its usage can be far too small for an object: nothing is deleted for it, and no pull waits.
func TestUnknownUsageMakesNoRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var unknown atomic.Bool
		s := open(t, t.TempDir(), setup{
			limits: evict.Limits{TTL: time.Hour, HighWatermark: 100, LowWatermark: 100},
			fault:  volumetest.While(&unknown, volumetest.Fail(syscall.EIO, volume.OpStatfs)),
		})
		for n := range 5 {
			sized(t, s, n, 10)
		}
		defer run(t, s)()
		for _, test := range []struct {
			unknown bool
			want    error
			left    int
		}{
			{true, syscall.ENOSPC, 5},
			{false, nil, 4},
		} {
			unknown.Store(test.unknown)
			// Otherwise partial downloads would be deleted.
			if got := s.Fits(10); got == test.unknown {
				t.Errorf("usage unknown %t: fits %t", test.unknown, got)
			}
			began := time.Now()
			err := s.MakeRoom(t.Context(), 10, 10, func() error {
				if len(s.index.Records()) == 5 {
					return syscall.ENOSPC
				}
				return nil
			})
			if !errors.Is(err, test.want) {
				t.Errorf("usage unknown %t: %v, want %v", test.unknown, err, test.want)
			}
			if took := time.Since(began); took > 5*maxRest {
				t.Errorf("usage unknown %t: waited %s", test.unknown, took)
			}
			synctest.Wait()
			if got := len(s.index.Records()); got != test.left {
				t.Errorf("usage unknown %t: %d objects are left, want %d", test.unknown, got, test.left)
			}
		}
	})
}

// On a full volume without anything to delete, no pull waits. This is found out again after some seconds.
func TestMakeRoomWithoutContent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := open(t, t.TempDir(), setup{
			limits:     week,
			fileSystem: func() (Space, error) { return Space{Bytes: evict.Amount{Used: 100, Limit: 100}}, nil },
		})
		defer run(t, s)()
		began := time.Now()
		makeRoom := func() { // without space for it
			if err := s.MakeRoom(t.Context(), 1, 1, func() error { return syscall.ENOSPC }); !errors.Is(err, syscall.ENOSPC) {
				t.Error(err)
			}
		}
		makeRoom()
		sized(t, s, 1, 10)
		makeRoom()
		if took := time.Since(began); took > 5*maxRest {
			t.Errorf("two blobs waited %s", took)
		}
		if got := len(s.index.Records()); got != 1 {
			t.Error("the second blob requests an eviction immediately after one without effect")
		}
		time.Sleep(exhaustedTime)
		makeRoom()
		if got := len(s.index.Records()); got != 0 {
			t.Error("the third blob requests no eviction")
		}
	})
}

func TestMakeRoomEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), setup{
		limits:     week,
		fileSystem: func() (Space, error) { return Space{Bytes: evict.Amount{Used: 100, Limit: 100}}, nil },
	})
	s.indexed.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// The collector does not run, so it does not receive the request.
	if err := s.MakeRoom(ctx, 1, 1, func() error { return syscall.ENOSPC }); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
}

func TestWaiters(t *testing.T) {
	t.Parallel()
	var p waiters
	met := func(d roomRequest) bool {
		select {
		case freed := <-d.done:
			return freed
		default:
			return false
		}
	}
	first, second, third := newRoomRequest(10), newRoomRequest(5), newRoomRequest(1)
	if due := p.add(first, 100); due != 110 {
		t.Errorf("the first is due at %d", due)
	}
	if due := p.add(second, 104); due != 115 {
		t.Errorf("the second is due at %d: the same bytes were promised twice", due)
	}
	p.complete(109)
	if met(first) {
		t.Error("the first was met too early")
	}
	p.complete(110)
	if !met(first) || met(second) {
		t.Errorf("after 110 bytes: first %t, second %t", met(first), met(second))
	}
	p.complete(115)
	if !met(second) || len(p) != 0 {
		t.Errorf("after 115 bytes: %d left", len(p))
	}
	p.add(third, 115)
	p.end()
	if freed, ended := <-third.done, len(p) == 0; freed || !ended {
		t.Errorf("at the end: third %t, %d left", freed, len(p))
	}
}
