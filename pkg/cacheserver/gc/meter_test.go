// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/cacheserver/volume/volumetest"
)

func TestMeter(t *testing.T) {
	t.Parallel()
	now := time.Now()
	usage := func(used, own int64) evict.Usage {
		return evict.Usage{FileSystem: evict.Amount{Used: used, Limit: 1000}, Own: own}
	}
	for name, test := range map[string]struct {
		deleted int64
		after   evict.Usage
		want    bool
	}{
		"nothing deleted":                     {0, usage(900, 800), true},
		"freed":                               {200, usage(700, 600), true},
		"new content was stored concurrently": {200, usage(900, 800), true},
		"half is not visible yet":             {200, usage(800, 600), true},
		"others have used it":                 {200, usage(900, 600), false},
		"below 1 % of the file system":        {9, usage(900, 791), true},
		"not measured":                        {200, evict.Usage{Own: 600}, true},
	} {
		m := meter{ineffective: maxIneffective - 1}
		if test.deleted > 0 {
			m.recordDeletion(usage(900, 800), test.deleted, now)
		}
		if got := m.compare(test.after, now); got != test.want {
			t.Errorf("%s: got %t, want %t", name, got, test.want)
		}
		if m.isEffective(now) != test.want || !m.isEffective(now.Add(ineffectiveTime)) {
			t.Errorf("%s: effective now %t, later %t", name, m.isEffective(now), m.isEffective(now.Add(ineffectiveTime)))
		}
	}
}

// Space is reserved within the size of the cache before it is reserved on the file system, which can fail.
func TestMeterWithReservations(t *testing.T) {
	t.Parallel()
	now := time.Now()
	usage := func(used, stored, reserved int64) evict.Usage {
		return evict.Usage{FileSystem: evict.Amount{Used: used, Limit: 1000}, Own: stored + reserved, Reserved: reserved}
	}
	for name, test := range map[string]struct {
		before, after evict.Usage
		want          bool
	}{
		"a reservation of the file system has failed":   {usage(900, 800, 300), usage(700, 600, 0), true},
		"a reservation of the file system has followed": {usage(900, 800, 300), usage(1000, 600, 300), true},
		"a download was stored":                         {usage(900, 500, 300), usage(700, 600, 0), true},
		"a download was stored, and is still reserved":  {usage(900, 500, 300), usage(700, 600, 300), true},
		"a download has started":                        {usage(900, 800, 0), usage(900, 600, 200), true},
		"others have used it during a download":         {usage(700, 500, 300), usage(1000, 300, 300), false},
		"others have used it after a failed download":   {usage(900, 800, 300), usage(900, 600, 0), false},
	} {
		m := meter{ineffective: maxIneffective - 1}
		m.recordDeletion(test.before, 200, now)
		if got := m.compare(test.after, now); got != test.want {
			t.Errorf("%s: got %t, want %t", name, got, test.want)
		}
	}
}

// While a download is in progress, several deletions are compared together.
func TestMeterDuringADownload(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		freed int64 // by each deletion of 100 bytes
		pause time.Duration
		want  bool
	}{
		"effective":            {100, time.Second, true},
		"ineffective":          {0, time.Second, false},
		"too far apart to say": {0, ineffectiveTime, true},
	} {
		m, now := meter{}, time.Now()
		usage := evict.Usage{FileSystem: evict.Amount{Used: 950, Limit: 1000}, Own: 900, Reserved: 100}
		effective := true
		for range 8 {
			m.recordDeletion(usage, 100, now)
			usage.Own -= 100
			usage.FileSystem.Used -= test.freed
			now = now.Add(test.pause)
			effective = m.compare(usage, now) && effective
		}
		if effective != test.want {
			t.Errorf("%s: got %t, want %t", name, effective, test.want)
		}
	}
}

func TestSpaceOf(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		stat syscall.Statfs_t
		want Space
	}{
		"fragment size": {syscall.Statfs_t{Bsize: 1 << 20, Frsize: 4096, Blocks: 100, Bfree: 40, Bavail: 30, Files: 50, Ffree: 20},
			Space{Bytes: evict.Amount{Used: 60 * 4096, Limit: 90 * 4096}, Inodes: evict.Amount{Used: 30, Limit: 50}}},
		"no fragment size, no inodes": {syscall.Statfs_t{Bsize: 4096, Blocks: 100, Bfree: 40, Bavail: 40},
			Space{Bytes: evict.Amount{Used: 60 * 4096, Limit: 100 * 4096}}},
	} {
		if got := spaceOf(test.stat); got != test.want {
			t.Errorf("%s: got %+v, want %+v", name, got, test.want)
		}
	}
}

// stored returns the number of stored objects.
func stored(t *testing.T, s *rig, all []digest.Digest) (n int) {
	t.Helper()
	for _, d := range all {
		if has(t, s, d) {
			n++
		}
	}
	return n
}

// Other files fill the file system: the cache must not delete all of its content again and again.
func TestOthersFillTheFileSystem(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fileSystem func(own int64) Space
		want       int // objects of 100 bytes that remain
	}{
		"95 % are used by others":  {func(own int64) Space { return Space{Bytes: evict.Amount{Used: 19<<30 + own, Limit: 20 << 30}} }, 8},
		"deletions have no effect": {func(int64) Space { return Space{Bytes: evict.Amount{Used: 950, Limit: 1000}} }, 4},
		"others use what is freed": {func(own int64) Space { return Space{Bytes: evict.Amount{Used: max(950, 150+own), Limit: 1000}} }, 4},
		"deletions have an effect": {func(own int64) Space { return Space{Bytes: evict.Amount{Used: 150 + own, Limit: 1000}} }, 6},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				root := t.TempDir()
				v := newFakeVolume(root, 1)
				var filled atomic.Bool
				s := open(t, root, setup{limits: week, fileSystem: func() (Space, error) {
					own, err := v.measure()
					if !filled.Load() {
						return Space{Bytes: evict.Amount{Used: 0, Limit: 1000}}, err
					}
					return test.fileSystem(own.Bytes.Used), err
				}})
				defer run(t, s)()
				var all []digest.Digest
				for n := range 8 {
					all = append(all, sized(t, s, n, 100))
				}
				filled.Store(true)
				time.Sleep(5 * time.Minute)
				synctest.Wait()
				if got := stored(t, s, all); got != test.want {
					t.Errorf("%d objects remain, want %d", got, test.want)
				}
			})
		})
	}
}

// Writes that fail on such a file system delete nothing.
func TestFailedWritesOnVolumeOfOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		s := open(t, t.TempDir(), setup{limits: week,
			fileSystem: func() (Space, error) { return Space{Bytes: evict.Amount{Used: 1 << 30, Limit: 1 << 30}}, nil },
			fault:      volumetest.While(&full, volumetest.Fail(syscall.ENOSPC, volume.OpCreate)),
		})
		defer run(t, s)()
		var all []digest.Digest
		for n := range 20 {
			all = append(all, sized(t, s, n, 100))
		}
		full.Store(true)
		for range 3 {
			if err := tryCommit(s, repository); !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			time.Sleep(checkInterval)
			synctest.Wait()
		}
		if got := stored(t, s, all); got != len(all) {
			t.Errorf("%d of %d objects remain", got, len(all))
		}
	})
}

// The configured size limits the content on a file system that is larger, and a larger size applies without a restart.
func TestSize(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		var size atomic.Int64
		size.Store(1000)
		s := open(t, root, setup{limits: week, size: size.Load,
			fileSystem: func() (Space, error) { return Space{Bytes: evict.Amount{Used: 1 << 30, Limit: 1 << 60}}, nil }})
		defer run(t, s)()
		var all []digest.Digest
		for n := range 9 {
			all = append(all, sized(t, s, n, 100))
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if got := stored(t, s, all); got != 8 || has(t, s, all[0]) {
			t.Errorf("at 90 %%: %d objects remain", got)
		}
		// A download reserves its space within the size.
		p, _, err := s.Receive(layerDigest)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Reserve(t.Context(), 500); err != nil {
			t.Errorf("reserving 500 of 1000 bytes: %v", err)
		}
		synctest.Wait()
		if got := stored(t, s, all); got > 5 {
			t.Errorf("%d objects and 500 reserved bytes exceed the size", got)
		}
		if err := errors.Join(p.Discard(), p.Close()); err != nil {
			t.Error(err)
		}
		large, _, err := s.Receive(layerDigest)
		if err != nil {
			t.Fatal(err)
		}
		if err := large.Reserve(t.Context(), 1001); !errors.Is(err, syscall.EDQUOT) {
			t.Errorf("reserving more than the size: %v", err)
		}
		size.Store(4000)
		time.Sleep(checkInterval)
		if err := large.Reserve(t.Context(), 1001); err != nil {
			t.Errorf("after the increase: %v", err)
		}
		if err := errors.Join(large.Discard(), large.Close()); err != nil {
			t.Error(err)
		}
	})
}

// Partial downloads of earlier requests use a part of the size. They are deleted when another download needs it.
func TestSizeWithPartialDownloads(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), setup{limits: week, size: func() int64 { return 1000 },
		fileSystem: func() (Space, error) { return Space{Bytes: evict.Amount{Used: 1 << 30, Limit: 1 << 60}}, nil }})
	kept, progress, err := s.Receive(layerDigest)
	if err != nil {
		t.Fatal(err)
	}
	progress.Spans = [][2]int64{{100, 700}}
	if err := errors.Join(kept.Keep(progress), kept.Close()); err != nil {
		t.Fatal(err)
	}
	if err := s.Collector.Reserve(400); err != nil {
		t.Errorf("600 and 400 of 1000 bytes: %v", err)
	}
	if err := s.Collector.Reserve(1); !errors.Is(err, syscall.EDQUOT) {
		t.Errorf("one byte more than the size: %v", err)
	}
	other, _, err := s.Receive(digest.FromString("other"))
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Reserve(t.Context(), 600); err != nil {
		t.Errorf("instead of the partial download: %v", err)
	}
	if err := errors.Join(other.Discard(), other.Close()); err != nil {
		t.Error(err)
	}
}

// A volume without inodes is full although it has free bytes.
func TestInodes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		v := newFakeVolume(root, 1)
		s := open(t, root, setup{limits: week, fileSystem: func() (Space, error) {
			own, err := v.measure()
			objects := own.Bytes.Used / 100
			return Space{Bytes: evict.Amount{Used: own.Bytes.Used, Limit: 1 << 30}, Inodes: evict.Amount{Used: 4 * objects, Limit: 40}}, err
		}})
		defer run(t, s)()
		var all []digest.Digest
		for n := range 9 {
			all = append(all, sized(t, s, n, 100))
			time.Sleep(time.Second)
		}
		time.Sleep(checkInterval)
		synctest.Wait()
		if got := stored(t, s, all); got != 8 || has(t, s, all[0]) {
			t.Errorf("%d objects remain, want the 8 most recently used", got)
		}
	})
}

// A limit that the file system does not report, such as a quota, evicts 5 % of the objects.
func TestHiddenLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		s := open(t, t.TempDir(), setup{limits: week,
			fileSystem: func() (Space, error) { return Space{Bytes: evict.Amount{Used: 10, Limit: 1 << 30}}, nil },
			fault:      volumetest.While(&full, volumetest.Fail(syscall.EDQUOT, volume.OpCreate)),
		})
		defer run(t, s)()
		var all []digest.Digest
		for n := range 21 {
			all = append(all, sized(t, s, n, 100))
			time.Sleep(time.Second)
		}
		full.Store(true)
		if err := tryCommit(s, repository); !errors.Is(err, syscall.EDQUOT) {
			t.Fatal(err)
		}
		time.Sleep(settleTime)
		synctest.Wait()
		full.Store(false)
		if got := stored(t, s, all); got != 19 || has(t, s, all[0]) || has(t, s, all[1]) {
			t.Errorf("%d objects remain, want the 19 most recently used", got)
		}
	})
}

// A download that found no space on the file system bypasses the volume, so other downloads may use the size of the cache.
func TestFailedReservationIsReleased(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), setup{limits: week, size: func() int64 { return 1000 },
		fault: volumetest.Fail(syscall.ENOSPC, volume.OpAllocate)})
	p, _, err := s.Receive(layerDigest)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Reserve(t.Context(), 800); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("on a full file system: %v", err)
	}
	if err := s.Collector.Reserve(1000); err != nil {
		t.Errorf("while the other download bypasses the volume: %v", err)
	}
	if err := errors.Join(p.Discard(), p.Close()); err != nil {
		t.Error(err)
	}
	s.Collector.Release(1000)
	if got := s.Collector.reserved.Load(); got != 0 {
		t.Errorf("%d bytes are still reserved", got)
	}
}

// A blob is counted once, also while a slow client still reads it from its download.
func TestStoredBlobIsNotReserved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := open(t, t.TempDir(), setup{limits: week, size: func() int64 { return 1000 },
			fileSystem: func() (Space, error) { return Space{Bytes: evict.Amount{Limit: 1 << 60}}, nil }})
		defer run(t, s)()
		all := []digest.Digest{sized(t, s, 1, 200), sized(t, s, 2, 200)}
		content := strings.Repeat("x", 400)
		d := digest.FromString(content)
		p, _, err := s.Receive(d)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Reserve(t.Context(), 400); err != nil {
			t.Fatal(err)
		}
		if _, err := p.WriteAt([]byte(content), 0); err != nil {
			t.Fatal(err)
		}
		if err := p.Commit(d, int64(len(content)), []string{repository}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(checkInterval)
		synctest.Wait()
		if got := stored(t, s, all); got != 2 {
			t.Errorf("%d of 2 objects remain although 800 of 1000 bytes are used", got)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if got := s.Collector.reserved.Load(); got != 0 {
			t.Errorf("%d bytes are reserved after the end of the download", got)
		}
	})
}

// A blob that can never fit deletes neither content nor partial downloads.
func TestTooLargeBlobDeletesNothing(t *testing.T) {
	t.Parallel()
	const limit = 10000
	for name, test := range map[string]struct {
		limits evict.Limits
		fault  volumetest.Fault
	}{
		"size of the cache": {evict.Limits{TTL: week.TTL, HighWatermark: 90, LowWatermark: 80, Size: limit}, nil},
		"file system":       {week, volumetest.Fail(syscall.ENOSPC, volume.OpAllocate)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				root := t.TempDir()
				s := open(t, root, setup{limits: test.limits, fault: test.fault, fileSystem: newFakeVolume(root, limit).measure})
				defer run(t, s)()
				var all []digest.Digest
				for n := range 40 {
					all = append(all, sized(t, s, n, 20))
				}
				partial, progress, err := s.Receive(layerDigest)
				if err != nil {
					t.Fatal(err)
				}
				progress.Spans = [][2]int64{{0, 10}}
				if err := errors.Join(partial.Keep(progress), partial.Close()); err != nil {
					t.Fatal(err)
				}
				for range 3 {
					large, _, err := s.Receive(digest.FromString("large"))
					if err != nil {
						t.Fatal(err)
					}
					if err := large.Reserve(t.Context(), limit+1); !volume.IsFull(err) {
						t.Errorf("reserving more than the volume has: %v", err)
					}
					if err := errors.Join(large.Discard(), large.Close()); err != nil {
						t.Error(err)
					}
					time.Sleep(checkInterval)
					synctest.Wait()
				}
				if got := stored(t, s, all); got != len(all) || s.volume.PartialBytes() != 10 {
					t.Errorf("%d of %d objects and %d of 10 bytes of a partial download are left", got, len(all), s.volume.PartialBytes())
				}
			})
		})
	}
}
