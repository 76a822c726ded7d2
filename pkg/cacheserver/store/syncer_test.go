// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/cacheserver/volume/volumetest"
)

// slowSync is a volume whose fsync calls wait until they are released.
type slowSync struct {
	release chan struct{}

	mu     sync.Mutex // guards synced
	synced map[string]bool
}

func newSlowSync() *slowSync {
	return &slowSync{release: make(chan struct{}), synced: map[string]bool{}}
}

func (v *slowSync) fault(op volume.Op, path string) error {
	if op != volume.OpSync && op != volume.OpSyncDir {
		return nil
	}
	<-v.release
	v.mu.Lock()
	defer v.mu.Unlock()
	v.synced[path] = true
	return nil
}

func (v *slowSync) has(path string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.synced[path]
}

// openOn opens a store on a volume with a fault.
func openOn(t *testing.T, o volume.Options) (s *Store, root string) {
	t.Helper()
	root = t.TempDir()
	v := volume.New(root, o)
	t.Cleanup(v.Close)
	return open(t, root, Options{Volume: v}), root
}

// Clients receive manifests before an fsync, and power failures lose none of them for long.
func TestManifestsAreSyncedLater(t *testing.T) {
	t.Parallel()
	slow := newSlowSync()
	s, root := openOn(t, volume.Options{Timeout: time.Minute, SyncTimeout: time.Minute, Fault: slow.fault})
	var writers sync.WaitGroup
	for i := range 400 {
		writers.Go(func() {
			content := fmt.Sprintf(`{"schemaVersion":2,"n":%d}`, i)
			d := digest.FromString(content)
			if err := s.PutManifest(repository, d, []byte(content)); err != nil {
				t.Error(err)
			}
			if err := s.SetTag(repository, fmt.Sprint(i), d); err != nil {
				t.Error(err)
			}
		})
	}
	if err := s.PutManifest(repository, manifestDigest, []byte(manifest)); err != nil {
		t.Fatal(err)
	}
	writers.Wait()

	close(slow.release)
	want := []string{root}
	for _, path := range []string{manifestFile, revisionLink} {
		want = append(want, filepath.Join(root, path))
		for dir := filepath.Dir(path); dir != "."; dir = filepath.Dir(dir) {
			want = append(want, filepath.Join(root, dir))
		}
	}
	for _, path := range want {
		awaitSync(t, slow, path)
	}
}

func awaitSync(t *testing.T, slow *slowSync, path string) {
	t.Helper()
	deadline := time.After(time.Minute)
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for !slow.has(path) {
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatalf("%s is not synced", path)
		}
	}
}

// The end of a server waits for the calls in progress only, which have a deadline.
func TestCloseDuringSync(t *testing.T) {
	t.Parallel()
	slow := newSlowSync()
	defer close(slow.release)
	s, _ := openOn(t, volume.Options{SyncTimeout: 100 * time.Millisecond, Fault: slow.fault})
	if err := s.PutManifest(repository, manifestDigest, []byte(manifest)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if got := problemPaths(s); len(got) > 0 {
		t.Errorf("problems of %v although the volume is hung", got)
	}
}

// slowLog is a volume whose fsync calls take some time, except those of records. It logs them.
type slowLog struct {
	took time.Duration

	mu      sync.Mutex  // guards the following fields
	stored  []time.Time // ends of the calls for manifests and links
	partial []time.Time // begins of the calls for partial downloads
}

func (l *slowLog) fault(op volume.Op, path string) error {
	switch {
	case op != volume.OpSync || strings.HasPrefix(filepath.Base(path), "file-"):
	case strings.Contains(path, "/docker/registry/v2/"):
		time.Sleep(l.took)
		l.add(&l.stored)
	default:
		l.add(&l.partial)
		time.Sleep(l.took)
	}
	return nil
}

func (l *slowLog) add(to *[]time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*to = append(*to, time.Now())
}

// keepPartials keeps n partial downloads of 4 bytes each.
func keepPartials(t *testing.T, s *Store, n int) {
	t.Helper()
	for number := range n {
		d := digest.FromString(fmt.Sprint("partial ", number))
		i, _, err := s.Receive(d)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := i.WriteAt([]byte("part"), 0); err != nil {
			t.Fatal(err)
		}
		progress := Progress{Digest: d, Size: 10, Spans: [][2]int64{{0, 4}}, Repositories: []string{repository}}
		if err := errors.Join(i.Keep(progress), i.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// The end of a server does not take longer with more partial downloads: it is killed if it takes long. Those that are synced by
// then continue after a restart of the machine.
func TestCloseSyncsPartialsForSomeTime(t *testing.T) {
	t.Parallel()
	const partials = 5
	for _, test := range []struct {
		took   time.Duration
		synced int
	}{
		{0, partials},
		{100 * time.Millisecond, partials},
		{2 * time.Second, 2},
		{syncTime, 1},
		{10 * time.Second, 1},
	} {
		t.Run(test.took.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				log := &slowLog{took: test.took}
				root := t.TempDir()
				s, err := Open(root, Options{Volume: volumetest.New(t, log.fault), Boot: "earlier"})
				if err != nil {
					t.Fatal(err)
				}
				keepPartials(t, s, partials)
				began := time.Now()
				s.Close()
				if took := time.Since(began); took != time.Duration(test.synced)*test.took {
					t.Errorf("closing took %s, want %d times %s", took, test.synced, test.took)
				}
				if len(log.partial) != test.synced {
					t.Errorf("%d fsync calls, want %d", len(log.partial), test.synced)
				}
				for _, at := range log.partial {
					if after := at.Sub(began); after >= syncTime {
						t.Errorf("an fsync began after %s", after)
					}
				}
				s = open(t, root, Options{Boot: "later"})
				if got := s.partials.total(); got != int64(test.synced)*4 {
					t.Errorf("%d bytes continue after a restart of the machine, want %d", got, test.synced*4)
				}
			})
		})
	}
}

// Manifests are more useful than parts of blobs, and there are fewer bytes to write: no fsync of a partial download delays theirs.
func TestCloseSyncsManifestsFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := &slowLog{took: time.Second}
		s, err := Open(t.TempDir(), Options{Volume: volumetest.New(t, log.fault)})
		if err != nil {
			t.Fatal(err)
		}
		keepPartials(t, s, 1)
		if err := s.PutManifest(repository, manifestDigest, []byte(manifest)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the fsync of the manifest has begun
		s.Close()
		if len(log.stored) == 0 || len(log.partial) != 1 {
			t.Fatalf("%d fsync calls of the manifest and its link, %d of the partial download", len(log.stored), len(log.partial))
		}
		for _, at := range log.stored {
			if log.partial[0].Before(at) {
				t.Errorf("the fsync of a partial download began %s before the end of that of a manifest", at.Sub(log.partial[0]))
			}
		}
	})
}

func TestSyncErrorIsAProblem(t *testing.T) {
	t.Parallel()
	s, _ := openOn(t, volume.Options{Fault: func(op volume.Op, path string) error {
		if op == volume.OpSync && strings.HasSuffix(path, "/data") {
			return syscall.EIO
		}
		return nil
	}})
	if err := s.PutManifest(repository, manifestDigest, []byte(manifest)); err != nil {
		t.Fatal(err)
	}
	s.syncer.work.Wait()
	if got := problemPaths(s); len(got) != 1 || got[0] != manifestFile {
		t.Errorf("problems of %v, want of %s", got, manifestFile)
	}
}
