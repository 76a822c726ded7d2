// SPDX-License-Identifier: Apache-2.0

package upstream

import "testing"

func TestLogIsBounded(t *testing.T) {
	t.Parallel()
	var l requestLog
	for range maxRequests + 1 {
		l.begin(Request{})
	}
	requests := l.since(0)
	if n := len(requests); n > maxRequests || n < maxRequests*8/10 {
		t.Errorf("the log has %d entries, want a little less than %d", n, maxRequests)
	}
	if last := requests[len(requests)-1].ID; last != maxRequests+1 {
		t.Errorf("the last entry is %d, want %d", last, maxRequests+1)
	}
	l.reset()
	if entry := l.begin(Request{}); entry.ID != maxRequests+2 || len(l.since(0)) != 1 {
		t.Errorf("after a reset the log has %d entries from ID %d, want 1 from %d", len(l.since(0)), entry.ID, maxRequests+2)
	}
}

func TestRegistryHost(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{
		"ghcr.io":              "ghcr.io",
		"GHCR.io:443":          "ghcr.io",
		"docker.io":            "docker.io",
		"registry-1.docker.io": "docker.io",
		"index.docker.io":      "docker.io",
		"localhost:5000":       "default",
		"127.0.0.1":            "default",
		"[::1]:443":            "default",
		"[fd00::1]":            "default",
		"":                     "",
	} {
		if got := registryHost(host, "default"); got != want {
			t.Errorf("host of %q is %q, want %q", host, got, want)
		}
	}
}
