// SPDX-License-Identifier: Apache-2.0

package store

import (
	"io"
	"strconv"
	"testing"
)

// limitedFile is on a volume that cannot reserve space, because it does not tell which file it is.
type limitedFile struct{ File }

func TestReserveWithoutSupport(t *testing.T) {
	t.Parallel()
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.create("x")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, file := range []File{f, limitedFile{f}} {
		if err := allocate(file, 4096); err != nil {
			t.Error(err)
		}
	}
	if _, err := io.WriteString(f, "content"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100)
	n, err := f.ReadAt(got, 0)
	if err != io.EOF || string(got[:n]) != "content" {
		t.Errorf("the file has %s and %v: reserving changes the size", strconv.Quote(string(got[:n])), err)
	}
}
