// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"net/http"
	"testing"
	"time"
)

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, test := range []struct {
		status int
		header string
		want   time.Duration
	}{
		{429, "60", time.Minute},
		{503, " 60 ", time.Minute},
		{429, "Fri, 02 Jan 2026 03:05:05 GMT", time.Minute},
		{429, "3600", 5 * time.Minute},
		{429, "Fri, 02 Jan 2026 09:00:00 GMT", 5 * time.Minute},
		{429, "", 0},
		{429, "0", 0},
		{429, "-60", 0},
		{429, "soon", 0},
		{429, "1.5", 0},
		{429, "99999999999999999999", 0},
		{429, "1767323105", 0}, // a Unix time
		{429, "Fri, 02 Jan 2026 03:04:05 GMT", 0},
		{429, "Fri, 02 Jan 2036 03:04:05 GMT", 0},
		{500, "60", 0},
	} {
		resp := &http.Response{StatusCode: test.status, Header: http.Header{"Retry-After": {test.header}}}
		if got := retryAfter(resp, now); got != test.want {
			t.Errorf("%d with %q: %s, want %s", test.status, test.header, got, test.want)
		}
	}
}
