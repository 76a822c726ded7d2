// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"io/fs"
	"maps"
	"slices"
	"sync"

	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

// maxUndeleted bounds the paths of undeleted. Further files are deleted at the next start.
const maxUndeleted = 1 << 12

// undeleted are temporary files that could not be deleted because the volume failed. It is safe for concurrent use.
type undeleted struct {
	mu    sync.Mutex // guards paths
	paths map[string]bool
}

func newUndeleted() *undeleted { return &undeleted{paths: map[string]bool{}} }

// note records the result of the deletion of a file. An error that concerns only this file is not recorded, because repetitions
// would not be successful.
func (u *undeleted) note(path string, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case !volume.IsFailure(err):
		delete(u.paths, path)
	case len(u.paths) < maxUndeleted:
		u.paths[path] = true
	}
}

func (u *undeleted) list() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Collect(maps.Keys(u.paths))
}

// discard deletes temporary files, which may be missing. Files that it cannot delete because the volume fails are deleted by
// discardAgain.
func (d *disk) discard(paths ...string) error {
	var errs []error
	for _, path := range paths {
		err := d.removeIfExists(path)
		d.undeleted.note(path, err)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// discardAgain deletes the files that discard could not delete. It ends with the first failure of the volume.
func (d *disk) discardAgain() {
	for _, path := range d.undeleted.list() {
		if volume.IsFailure(d.discard(path)) {
			return
		}
	}
}

func (d *disk) removeIfExists(path string) error {
	if err := d.fs.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
