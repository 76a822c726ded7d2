// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func FuzzParse(f *testing.F) {
	full, err := os.ReadFile(filepath.Join("testdata", "full.yaml"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(full)
	f.Add([]byte(minimal))
	f.Add([]byte(minimal + "Listen: {}\ntags: {revalidateAfter: 1h1ns}\nstorage: {lowWatermark: 0}\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("upstream: {host: '[::1]:5000', remoteURL: 'http://u:p@h/?'}"))
	f.Fuzz(func(t *testing.T, document []byte) {
		parsed, err := Parse(document)
		if err != nil {
			return
		}
		again, err := parsed.Marshal()
		if err != nil {
			t.Fatalf("%q was read, but cannot be written: %v", document, err)
		}
		reread, err := Parse(again)
		if err != nil {
			t.Fatalf("%q was written, but cannot be read: %v", again, err)
		}
		if diff := cmp.Diff(parsed, reread); diff != "" {
			t.Errorf("-read +written and read\n%s", diff)
		}
	})
}
