// SPDX-License-Identifier: Apache-2.0

package result

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"testing"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

func TestExplain(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err  error
		want Reason
	}{
		{io.ErrUnexpectedEOF, Unavailable},
		{&upstream.Error{Err: io.ErrUnexpectedEOF}, Unavailable},
		{&upstream.Error{StatusCode: http.StatusInternalServerError}, Unavailable},
		{&upstream.Error{StatusCode: http.StatusNotFound}, NotFound},
		{&upstream.Error{StatusCode: http.StatusUnauthorized}, Denied},
		{&upstream.Error{StatusCode: http.StatusForbidden}, Denied},
		{&upstream.Error{StatusCode: http.StatusTooManyRequests}, RateLimited},
		{&upstream.Error{Err: os.ErrDeadlineExceeded}, TimedOut},
		{&upstream.Error{StatusCode: http.StatusRequestTimeout}, TimedOut},
		{&Error{Reason: NotFound, Err: &upstream.Error{StatusCode: http.StatusMethodNotAllowed}}, NotFound},
	} {
		wrapped := fmt.Errorf("fetching: %w", test.err)
		explained, ok := errors.AsType[*Error](Explain(wrapped))
		if !ok || explained.Reason != test.want {
			t.Errorf("%v: got %#v, want reason %d", test.err, explained, test.want)
		}
		if !errors.Is(explained, test.err) {
			t.Errorf("%v: the cause is missing in %v", test.err, explained)
		}
	}
}
