// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

const (
	// maxUnsynced bounds the files that wait for their fsync. Further files stay volatile: the kernel writes them within about
	// 30 s.
	maxUnsynced = 4096
	// syncParallel is the number of concurrent fsync calls. Network disks execute several of them in the time of one.
	syncParallel = 8
)

// syncer makes files durable after they were written, so that no response waits for an fsync. A file that a power failure
// damages before is detected by its digest when it is read. Its goroutines end when all files are synced. It is safe for
// concurrent use.
type syncer struct {
	disk   *disk
	report func(path string, err error) // called for each file or directory that cannot be synced

	work sync.WaitGroup

	mu      sync.Mutex      // guards the following fields
	pending map[string]bool // paths of files
	running bool
	closed  bool
}

func newSyncer(d *disk, report func(path string, err error)) *syncer {
	return &syncer{disk: d, report: report, pending: map[string]bool{}}
}

// add requests the fsync of a file and of its directories.
func (s *syncer) add(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.pending) >= maxUnsynced {
		return
	}
	s.pending[path] = true
	if !s.running {
		s.running = true
		s.work.Go(s.run)
	}
}

// close ends the syncer after the calls in progress. Files without an fsync stay volatile.
func (s *syncer) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.work.Wait()
}

// run syncs all files that were added before, until there are none.
func (s *syncer) run() {
	for {
		files := s.take()
		if len(files) == 0 {
			return
		}
		s.each(files, s.disk.syncFile)
		s.each(s.disk.directories(files), s.disk.fs.SyncDir)
	}
}

// take returns the files that wait. run ends after it has returned none.
func (s *syncer) take() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.pending) == 0 {
		s.running = false
		return nil
	}
	files := s.pending
	s.pending = map[string]bool{}
	return files
}

// each calls sync for each path. A missing path is no error: it was evicted. A hung volume is reported as such, and is not a
// problem of the file.
func (s *syncer) each(paths map[string]bool, sync func(path string) error) {
	next := make(chan string)
	done := make(chan struct{})
	for range syncParallel {
		go func() {
			for path := range next {
				err := sync(path)
				if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, volume.ErrHung) {
					s.report(path, err)
				}
			}
			done <- struct{}{}
		}()
	}
	for path := range paths {
		if s.ended() {
			break
		}
		next <- path
	}
	close(next)
	for range syncParallel {
		<-done
	}
}

func (s *syncer) ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// syncFile makes the content of a file durable, but not its name.
func (d *disk) syncFile(path string) error {
	f, err := d.fs.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// directories returns the directories of the files up to the root: the names of new ones are volatile, too.
func (d *disk) directories(files map[string]bool) map[string]bool {
	all := map[string]bool{}
	root := string(d.layout)
	for path := range files {
		for dir := filepath.Dir(path); len(dir) >= len(root) && !all[dir]; dir = filepath.Dir(dir) {
			all[dir] = true
		}
	}
	return all
}
