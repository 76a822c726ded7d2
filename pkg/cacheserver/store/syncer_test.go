// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/volume"
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
