// SPDX-License-Identifier: Apache-2.0

package answers

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

func TestClassify(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err  error
		want Class
		wait time.Duration
	}{
		{io.ErrUnexpectedEOF, Rejected, 0},
		{&upstream.Error{StatusCode: http.StatusNotFound}, Negative, 0},
		{&upstream.Error{StatusCode: http.StatusUnauthorized}, Rejected, 0},
		{&upstream.Error{StatusCode: http.StatusForbidden}, Rejected, 0},
		{&upstream.Error{StatusCode: http.StatusMethodNotAllowed}, Rejected, 0},
		{&upstream.Error{StatusCode: http.StatusRequestTimeout}, Temporary, 0},
		{&upstream.Error{StatusCode: http.StatusTooManyRequests, RetryAfter: time.Minute}, Temporary, time.Minute},
		{&upstream.Error{StatusCode: http.StatusInternalServerError}, Temporary, 0},
		{&upstream.Error{StatusCode: http.StatusServiceUnavailable, RetryAfter: time.Second}, Temporary, time.Second},
		{&upstream.Error{Err: io.ErrUnexpectedEOF}, Temporary, 0},
		{&upstream.Error{Err: os.ErrDeadlineExceeded}, Temporary, 0},
	} {
		class, wait := Classify(fmt.Errorf("revalidating: %w", test.err))
		if class != test.want || wait != test.wait {
			t.Errorf("%v: got %d, %s, want %d, %s", test.err, class, wait, test.want, test.wait)
		}
	}
}
