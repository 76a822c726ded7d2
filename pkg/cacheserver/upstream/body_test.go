// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/iotest"
)

// A body is read completely up to the limit, with and without an announced size, and also as the rest of an interrupted
// response. The result of an announced size needs no other memory.
func TestReadAll(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20
	content := bytes.Repeat([]byte("0123456789abcde\n"), limit/16+1)
	for _, size := range []int64{0, 1, firstBuffer - 1, firstBuffer, firstBuffer + 1, firstBuffer*bufferGrowth + 1, limit - 1, limit, limit + 1} {
		for _, before := range []int64{0, min(size, 1000)} {
			for _, announced := range []int64{size - before, -1} {
				resp := &http.Response{Body: io.NopCloser(bytes.NewReader(content[before:size])), ContentLength: announced}
				got, err := readAll(resp, request{}, content[:before:before], limit)
				switch {
				case size > limit:
					if failed, ok := errors.AsType[*Error](err); !ok || failed.Err == nil {
						t.Errorf("%d bytes after %d, announced %d: %v", size, before, announced, err)
					}
				case err != nil || !bytes.Equal(got, content[:size]):
					t.Errorf("%d bytes after %d, announced %d: got %d bytes, %v", size, before, announced, len(got), err)
				case announced >= 0 && cap(got) > len(got):
					t.Errorf("%d bytes after %d, announced %d: the capacity is %d bytes", size, before, announced, cap(got))
				}
			}
		}
	}
}

// The content before an error is returned, so that the rest can be requested.
func TestReadAllOfABrokenBody(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("x"), 2*firstBuffer)
	broken := &Error{Err: io.ErrUnexpectedEOF}
	for _, received := range []int64{0, 1000, firstBuffer, firstBuffer + 1} {
		for _, announced := range []int64{int64(len(content)), -1} {
			body := io.MultiReader(bytes.NewReader(content[:received]), iotest.ErrReader(broken))
			resp := &http.Response{Body: io.NopCloser(body), ContentLength: announced}
			got, err := readAll(resp, request{}, nil, 1<<20)
			if !errors.Is(err, broken) || !bytes.Equal(got, content[:received]) {
				t.Errorf("%d bytes, announced %d: got %d bytes, %v", received, announced, len(got), err)
			}
		}
	}
}
