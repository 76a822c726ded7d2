// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"io/fs"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
)

// withheld are the files that are not served: those that were found to be corrupt and still exist, for example on a read-only
// volume, and those that are examined after a failed read. There is at most one for each object of the volume. It is safe for
// concurrent use.
type withheld struct {
	files sync.Map // digest -> withheldFile
}

type withheldFile struct {
	info   fs.FileInfo
	reason string // for the log
}

// add withholds the file, instead of an earlier one of the digest.
func (w *withheld) add(d digest.Digest, info fs.FileInfo, reason string) {
	w.files.Store(d, withheldFile{info, reason})
}

// check returns an error that wraps ErrNotFound if the file is withheld.
func (w *withheld) check(d digest.Digest, info fs.FileInfo) error {
	found, exists := w.files.Load(d)
	if !exists {
		return nil
	}
	file := found.(withheldFile)
	if !os.SameFile(file.info, info) {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrNotFound, file.reason)
}

// contains reports that a file of the digest is withheld.
func (w *withheld) contains(d digest.Digest) bool {
	_, exists := w.files.Load(d)
	return exists
}

// release serves the files of the digest again.
func (w *withheld) release(d digest.Digest) { w.files.Delete(d) }

// releaseFile is release if the file is the one that is withheld.
func (w *withheld) releaseFile(d digest.Digest, info fs.FileInfo) {
	if w.check(d, info) != nil {
		w.release(d)
	}
}
