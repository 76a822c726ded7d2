// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"path/filepath"
	"slices"

	"github.com/registry-cache/extension/pkg/cacheserver/store/layout"
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
	checkOwnDirectory(s.reader, s.problems)
	s.partials.adoptAll(s.layout.Partials())
}

// checkOwnDirectory reports unexpected files in the directory of the cache server, and a file in its place.
func checkOwnDirectory(files layout.Reader, p *problems) {
	dir := filepath.Dir(files.Partials())
	entries, err := files.ReadDir(dir)
	p.addFile(dir, err)
	for _, entry := range entries {
		if slices.Contains(ownFiles, entry.Name()) || len(entry.Name()) > 6 && entry.Name()[:6] == "probe-" {
			continue
		}
		p.addFile(filepath.Join(dir, entry.Name()), errors.New("unexpected file; it is not used and can be deleted"))
	}
}
