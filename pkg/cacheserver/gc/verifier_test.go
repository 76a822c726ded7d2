// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/cacheserver/volume/volumetest"
)

// Content with a flipped bit is found after a start, and after it was served. Other content stays.
func TestCorruptContentIsDropped(t *testing.T) {
	t.Parallel()
	for _, served := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, root, setup{limits: week})
			stop := run(t, s)
			good, bad := sized(t, s, 1, 3<<20), sized(t, s, 2, 10)
			if !served {
				stop()
			}
			write(t, root, strings.TrimPrefix(s.layout.Data(bad), root), "corrupted!")
			if served {
				s.Collector.Served(good)
				s.Collector.Served(bad)
			} else {
				s = open(t, root, setup{limits: week})
				stop = run(t, s)
			}
			defer func() { stop() }()
			time.Sleep(time.Minute)
			synctest.Wait()
			if has(t, s, bad) || !has(t, s, good) {
				t.Errorf("served %t: corrupt content stored %t, other content %t", served, has(t, s, bad), has(t, s, good))
			}
		})
	}
}

// A volume that stops responding for some time does not prevent the verification of adopted content.
func TestVerificationContinuesAfterHang(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		s := open(t, root, setup{limits: week})
		stop := run(t, s)
		bad := sized(t, s, 1, 10)
		stop()
		write(t, root, strings.TrimPrefix(s.layout.Data(bad), root), "corrupted!")
		var reads atomic.Int64
		s = open(t, root, setup{limits: week, fault: func(op volume.Op, path string) error {
			if op == volume.OpRead && path == s.layout.Data(bad) && reads.Add(1) < 3 {
				time.Sleep(6 * time.Second) // longer than the deadline of the call
			}
			return nil
		}})
		defer run(t, s)()
		time.Sleep(time.Minute)
		synctest.Wait()
		if has(t, s, bad) {
			t.Errorf("corrupt content is stored after %d reads", reads.Load())
		}
	})
}

// A volume that fails for some time after a start loses no intact content, and its content is verified afterwards.
func TestVerificationContinuesAfterFailure(t *testing.T) {
	t.Parallel()
	for _, op := range []volume.Op{volume.OpRead, volume.OpOpen} {
		synctest.Test(t, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, root, setup{limits: week})
			stop := run(t, s)
			const objects = 20
			var bad digest.Digest
			for n := range objects {
				bad = sized(t, s, n, 10)
			}
			stop()
			write(t, root, strings.TrimPrefix(s.layout.Data(bad), root), "corrupted!")
			var fails atomic.Bool
			s = open(t, root, setup{limits: week, monitored: true, fault: volumetest.While(&fails, volumetest.Fail(syscall.EIO, op))})
			fails.Store(true)
			defer run(t, s)()
			time.Sleep(3 * time.Second)
			fails.Store(false)
			time.Sleep(time.Minute)
			synctest.Wait()
			if got := len(s.index.Records()); got != objects-1 || has(t, s, bad) {
				t.Errorf("%s: %d objects are left, want %d, corrupt content stored %t", op, got, objects-1, has(t, s, bad))
			}
		})
	}
}

// The verification of adopted content reads 50 MiB/s, and 5 MiB/s while any content is in use, so that clients get most of
// the throughput of the volume.
func TestVerificationYieldsToTraffic(t *testing.T) {
	t.Parallel()
	const size, slack = 20 << 20, 600 * time.Millisecond
	for _, test := range []struct {
		name        string
		inUse, want time.Duration // inUse is the time until the other content is not in use any more
	}{
		{"no traffic", 0, 400 * time.Millisecond},
		{"traffic", time.Hour, 4 * time.Second},
		{"traffic that ends after a half", 2 * time.Second, 2200 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, root, setup{limits: week})
			stop := run(t, s)
			large, requested := sized(t, s, 1, size), sized(t, s, 2, 10)
			stop()
			s = open(t, root, setup{limits: week})
			content, err := s.Blob(repository, requested)
			if err != nil {
				t.Fatal(err)
			}
			release := sync.OnceFunc(func() {
				if err := content.Close(); err != nil {
					t.Error(err)
				}
			})
			defer release()
			began := time.Now()
			defer run(t, s)()
			for !s.VerifiedSince(large, began.Add(-1)) && time.Since(began) < time.Minute {
				if time.Since(began) >= test.inUse {
					release()
				}
				time.Sleep(time.Millisecond)
			}
			// Both contents end with an incomplete MiB, which counts as a complete one.
			if took := time.Since(began); took < test.want || took > test.want+slack {
				t.Errorf("%s: %s for %d MiB, want %s to %s", test.name, took, size>>20, test.want, test.want+slack)
			}
		})
	}
}

// Content that is served often is not verified each time.
func TestServedContentIsVerifiedHourly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		s := open(t, root, setup{limits: week})
		defer run(t, s)()
		d := sized(t, s, 1, 10)
		serve := func() {
			s.Collector.Served(d)
			time.Sleep(time.Minute)
			synctest.Wait()
		}
		serve()
		// The file on the disk is newer than the time of the test, so it counts as old.
		write(t, root, strings.TrimPrefix(s.layout.Data(d), root), "corrupted!")
		serve()
		if !has(t, s, d) {
			t.Error("the content was verified again within two minutes")
		}
		time.Sleep(time.Hour)
		serve()
		if has(t, s, d) {
			t.Error("the content was not verified again within an hour")
		}
	})
}

// Content that was stored while the corrupt file was read stays.
func TestNewContentIsNotDropped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := open(t, t.TempDir(), setup{limits: week})
		stop := run(t, s)
		defer stop()
		d := sized(t, s, 1, 10)
		path := s.layout.Data(d)
		corrupt, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path, path+".old"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Store.Drop(d, corrupt, "test"); err != nil || !has(t, s, d) {
			t.Errorf("after the corrupt file was replaced: %v, stored %t", err, has(t, s, d))
		}
		current, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Store.Drop(d, current, "test"); err != nil || has(t, s, d) {
			t.Errorf("the corrupt file: %v, stored %t", err, has(t, s, d))
		}
	})
}

// A truncated blob is not served, also before the volume is indexed.
func TestTruncatedContentIsNotServed(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, root, setup{limits: week})
			stop := run(t, s)
			d := sized(t, s, 1, 100)
			stop()
			if restart {
				s = open(t, root, setup{limits: week})
			}
			if err := os.Truncate(s.layout.Data(d), 70); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Content(d); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("restart %t: got %v", restart, err)
			}
			if _, err := os.Stat(s.layout.Data(d)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("restart %t: the file still exists: %v", restart, err)
			}
		})
	}
}
