// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/store/layout"
	"github.com/registry-cache/extension/pkg/oci"
)

const (
	// maxRecordsSize bounds the file of last uses, in bytes: 600 000 objects.
	maxRecordsSize = 64 << 20
	// timeFormat is the format of a last use.
	timeFormat = "2006-01-02T15:04:05Z"
)

// record is the recorded state of an object.
type record struct {
	lastUse time.Time // in seconds
	size    int64     // in bytes; -1 if it is not recorded
}

// formatRecords returns a line "sha256:<hex> <last use in UTC> <size in bytes>" for each object, sorted by digest.
func formatRecords(records []evict.Record) []byte {
	slices.SortFunc(records, func(a, b evict.Record) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	var b bytes.Buffer
	for _, r := range records {
		fmt.Fprintf(&b, "%s %s %d\n", r.Digest, r.LastUse.UTC().Format(timeFormat), r.Size)
	}
	return b.Bytes()
}

// parseRecords reads the output of formatRecords, also that of versions without sizes. It skips invalid lines and returns
// their number.
func parseRecords(r io.Reader) (records map[digest.Digest]record, invalid int, err error) {
	records = map[digest.Digest]record{}
	lines := bufio.NewReaderSize(r, 4<<10)
	for {
		line, err := lines.ReadSlice('\n')
		if len(line) > 0 {
			if d, r, ok := parseRecord(string(line)); ok {
				records[d] = r
			} else {
				invalid++
			}
		}
		switch {
		case err == io.EOF:
			return records, invalid, nil
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return records, invalid, err
		}
	}
}

// parseRecord parses one line. A line without a line feed is incomplete.
func parseRecord(line string) (d digest.Digest, r record, ok bool) {
	line, complete := strings.CutSuffix(line, "\n")
	fields := strings.Split(line, " ")
	if !complete || len(fields) < 2 || len(fields) > 3 {
		return "", record{}, false
	}
	d, digestErr := oci.ParseDigest(fields[0])
	lastUse, timeErr := time.Parse(timeFormat, fields[1])
	r = record{lastUse, -1}
	var sizeErr error
	if len(fields) == 3 {
		var size uint64
		size, sizeErr = strconv.ParseUint(fields[2], 10, 63)
		r.size = int64(size)
	}
	return d, r, digestErr == nil && timeErr == nil && sizeErr == nil
}

// readRecords reads the recorded state of all objects. A missing file contains nothing.
func readRecords(r layout.Reader) (records map[digest.Digest]record, invalid int, err error) {
	content, err := r.FS.ReadFile(r.LastUses(), maxRecordsSize)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, 0, nil
	case err != nil:
		return nil, 0, err
	}
	return parseRecords(bytes.NewReader(content))
}

// newest returns the latest last use, zero without records.
func newest(records map[digest.Digest]record) (newest time.Time) {
	for _, r := range records {
		if r.lastUse.After(newest) {
			newest = r.lastUse
		}
	}
	return newest
}
