// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/oci"
)

const (
	// maxUsesSize bounds what is read of the file of last uses, in bytes: 700 000 objects. What is behind counts as
	// not recorded.
	maxUsesSize = 64 << 20
	// useFormat has a fixed length, so that no cut line looks whole.
	useFormat = "2006-01-02T15:04:05Z"
)

// formatUses returns a line "sha256:<hex> <time in UTC>" for each object, sorted by digest.
func formatUses(uses []evict.Use) []byte {
	slices.SortFunc(uses, func(a, b evict.Use) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	var b bytes.Buffer
	for _, u := range uses {
		fmt.Fprintf(&b, "%s %s\n", u.Digest, u.LastUse.UTC().Format(useFormat))
	}
	return b.Bytes()
}

// parseUses returns what formatUses was given, rounded down to seconds. Lines that are broken do not count; it returns
// their number.
func parseUses(r io.Reader) (uses map[digest.Digest]time.Time, broken int, err error) {
	uses = map[digest.Digest]time.Time{}
	lines := bufio.NewReaderSize(io.LimitReader(r, maxUsesSize), 4<<10)
	for {
		line, err := lines.ReadSlice('\n')
		if len(line) > 0 {
			name, at, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), " ")
			d, digestErr := oci.ParseDigest(name)
			t, timeErr := time.Parse(useFormat, at)
			if digestErr != nil || timeErr != nil {
				broken++
			} else {
				uses[d] = t
			}
		}
		switch {
		case err == io.EOF:
			return uses, broken, nil
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return uses, broken, err
		}
	}
}

// readUses is parseUses of the file; a missing one has recorded nothing.
func readUses(path string) (uses map[digest.Digest]time.Time, broken int, err error) {
	f, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, 0, nil
	case err != nil:
		return nil, 0, err
	}
	uses, broken, err = parseUses(f)
	return uses, broken, errors.Join(err, f.Close())
}

// loadUses returns the recorded last uses. What is missing or broken there is not recorded, which is no error.
func (s *Store) loadUses() map[digest.Digest]time.Time {
	uses, broken, err := readUses(s.layout.uses())
	if err != nil || broken > 0 {
		s.log.Warn("The record of last uses is not whole; the times of the files count instead", "brokenLines", broken, "error", err)
	}
	return uses
}

// saveUses records the last uses, for this server and for a stock registry, unless they are the same as what was recorded last, which it returns.
func (s *Store) saveUses(last []byte) []byte {
	uses := s.index.Uses()
	record := formatUses(uses)
	if bytes.Equal(record, last) {
		return last
	}
	if err := errors.Join(s.writeFile(s.layout.uses(), record), s.saveStockState(uses)); err != nil {
		s.log.Warn("Cannot record last uses", "error", err)
		return last
	}
	return record
}
