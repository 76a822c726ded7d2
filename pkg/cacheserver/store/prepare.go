// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
)

// ownFiles are the entries of the directory of the cache server.
var ownFiles = []string{"partial", "last-use", "probe"}

// prepare creates the root and finds the partial downloads of an earlier process. A volume that cannot be prepared can
// still contain readable content, so errors are problems and the store opens in any case.
func (s *Store) prepare() {
	root := string(s.layout)
	err := s.fs.MkdirAll(root, dirMode)
	s.problems.add(".", err)
	if err != nil {
		return
	}
	s.checkOwnDirectory(filepath.Dir(s.layout.Partials()))
	s.adoptPartials(s.layout.Partials())
}

// checkOwnDirectory reports unexpected files in the directory of the cache server, and a file in its place.
func (s *Store) checkOwnDirectory(dir string) {
	entries, err := s.reader.ReadDir(dir)
	s.addProblem(dir, err)
	for _, entry := range entries {
		if slices.Contains(ownFiles, entry.Name()) || len(entry.Name()) > 6 && entry.Name()[:6] == "probe-" {
			continue
		}
		s.addProblem(filepath.Join(dir, entry.Name()), errors.New("unexpected file; it is not used and can be deleted"))
	}
}

// addProblem records a problem with an absolute path. The error of a system call is recorded without its path.
func (s *Store) addProblem(path string, err error) {
	if pathError, ok := errors.AsType[*fs.PathError](err); ok {
		err = errors.New(pathError.Op + ": " + pathError.Err.Error())
	}
	s.problems.add(s.layout.Relative(path), err)
}
