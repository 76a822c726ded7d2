// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/store"
)

// Content with a flipped bit is found after a start, and on suspicion. Other content stays.
func TestCorruptContentIsDropped(t *testing.T) {
	t.Parallel()
	for _, suspect := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, root, setup{limits: week})
			stop := run(t, s)
			good, bad := sized(t, s, 1, 3<<20), sized(t, s, 2, 10)
			if !suspect {
				stop()
			}
			write(t, root, strings.TrimPrefix(s.layout.Data(bad), root), "corrupted!")
			if suspect {
				s.Store.Suspect(good)
				s.Store.Suspect(bad)
			} else {
				s = open(t, root, setup{limits: week})
				stop = run(t, s)
			}
			defer func() { stop() }()
			time.Sleep(time.Minute)
			synctest.Wait()
			if has(t, s, bad) || !has(t, s, good) {
				t.Errorf("suspect %t: corrupt content stored %t, other content %t", suspect, has(t, s, bad), has(t, s, good))
			}
		})
	}
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
