// SPDX-License-Identifier: Apache-2.0

package httpapi

import "testing"

func TestOneRange(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]string{
		"":                 "",
		"bytes=2-4":        "bytes=2-4",
		"bytes=2-":         "bytes=2-",
		"bytes=-2":         "bytes=-2",
		"bytes=0-1,":       "bytes=0-1",
		"bytes= , ,-2 ,\t": "bytes=-2",
		"bytes=0-0,2-3":    "",
		"bytes=+5-6":       "bytes=invalid",
		"items=0-1":        "",
		"bytes=0--0":       "bytes=invalid",
	} {
		if got := oneRange(header); got != want {
			t.Errorf("%q: got %q, want %q", header, got, want)
		}
	}
}
