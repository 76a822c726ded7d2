// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

func TestCPUSeconds(t *testing.T) {
	t.Parallel()
	// The name contains separators of fields.
	stat := []byte("42 (a (b) c) S 1 42 42 0 -1 4194560 1 2 3 4 100 50 30 20 20 0 1 0 12 0 0\n")
	for _, tc := range []struct {
		names []string
		want  float64
	}{{[]string{"utime", "stime"}, 1.5}, {[]string{"utime", "stime", "cutime", "cstime"}, 2}} {
		if got, err := cpuSeconds(stat, tc.names...); err != nil || got != tc.want {
			t.Errorf("%v: %v, %v, want %v", tc.names, got, err, tc.want)
		}
	}
	if _, err := cpuSeconds([]byte("42 (a) S 1"), "utime"); err == nil {
		t.Error("no error for half a line")
	}
}
