// SPDX-License-Identifier: Apache-2.0

package download

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

// quota is a collector that permits a number of bytes and deletes nothing.
type quota struct {
	mu                        sync.Mutex // guards all fields
	limit, reserved, required int64
	missing                   int64 // of the last call of MakeRoom
}

func (q *quota) Reserve(bytes int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.required = max(q.required, q.reserved+bytes)
	if q.reserved+bytes > q.limit {
		return syscall.EDQUOT
	}
	q.reserved += bytes
	return nil
}

func (q *quota) Release(bytes int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.reserved -= bytes
}

func (q *quota) MakeRoom(_ context.Context, _, missing int64, reserve func() error) error {
	q.mu.Lock()
	q.missing = missing
	q.mu.Unlock()
	return reserve()
}

func (q *quota) Fits(int64) bool              { return true }
func (q *quota) Now() time.Time               { return time.Now() }
func (q *quota) Grown()                       {}
func (q *quota) Full()                        {}
func (q *quota) Dropped(evict.Victim, string) {}
func (q *quota) Served(digest.Digest)         {}

// Bytes are reserved before they are written, also if the size of the blob is unknown, or if only parts of it are read.
func TestSpaceOfUnknownSize(t *testing.T) {
	t.Parallel()
	const size = 6 * mib
	for _, tc := range []struct {
		name   string
		noSize bool
		part   Part
		// required are the bytes that must be reserved.
		required int64
		limit    int64
		stored   bool
	}{
		{"known size", false, Part{}, size, size, true},
		{"known size, no space", false, Part{}, size, size - 1, false},
		{"unknown size", true, Part{}, size, size, true},
		{"unknown size, no space", true, Part{}, size, size - 1, false},
		{"part", false, Part{First: mib, Length: 3 * mib}, 3 * mib, size, false},
		{"part, no space", false, Part{First: mib, Length: 3 * mib}, 3 * mib, 2 * mib, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o := &origin{content: randomContent(size), noSize: tc.noSize}
				r := newRig(t, o, Options{Unstored: func(digest.Digest, error) {}})
				q := &quota{limit: tc.limit}
				r.store.Maintain(q)
				if _, err := r.pull(tc.part); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				q.mu.Lock()
				defer q.mu.Unlock()
				if q.required < tc.required || q.reserved != 0 {
					t.Errorf("%d bytes were reserved, want at least %d; %d are left", q.required, tc.required, q.reserved)
				}
				if tc.noSize && !tc.stored && q.missing != accountStep {
					t.Errorf("eviction of %d bytes was requested, want only those of the last step", q.missing)
				}
				if got := r.stored(); got != tc.stored {
					t.Errorf("stored: %t, want %t", got, tc.stored)
				}
			})
		})
	}
}

// The bytes of an earlier, partial download need space, too.
func TestSpaceOfContinuedDownload(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &origin{content: randomContent(6 * mib)}
		r := newRig(t, o, Options{})
		q := &quota{limit: 6 * mib}
		r.store.Maintain(q)
		for _, part := range []Part{{Length: 3 * mib}, {First: 4 * mib, Length: mib}} {
			if _, err := r.pull(part); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Minute) // the download ends and is kept
			synctest.Wait()
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.required < 4*mib {
			t.Errorf("%d bytes were reserved, want those of both parts", q.required)
		}
	})
}

// The bytes of a partial download that another repository must not use do not stay on the volume.
func TestSpaceOfRefusedProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &origin{content: randomContent(6 * mib)}
		r := newRig(t, o, Options{})
		if _, err := r.pull(Part{Length: 3 * mib}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // the download ends and is kept
		synctest.Wait()
		reader, err := r.Open(t.Context(), Request{Repository: "library/other", Digest: r.digest, Part: Part{First: 4 * mib, Length: mib}})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(reader.Await(t.Context(), 4*mib), reader.Close()); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		files, err := filepath.Glob(filepath.Join(r.root, "registry-cache/partial/*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			var stat syscall.Stat_t
			if err := syscall.Stat(file, &stat); err != nil {
				t.Fatal(err)
			}
			if used := stat.Blocks * 512; used > 2*mib {
				t.Errorf("%s uses %d bytes, want those of the second part", filepath.Base(file), used)
			}
		}
		if len(files) == 0 {
			t.Error("no partial download was kept")
		}
	})
}
