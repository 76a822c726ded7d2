// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

// A caller detects with Queued whether it reads more slowly than the upstream sends, also after a redirect.
func TestQueued(t *testing.T) {
	t.Parallel()
	const size = 48 << 10 // less than the smallest receive buffer
	next := make(chan struct{})
	r := serve(t, func(w http.ResponseWriter, req *http.Request) {
		if strings.Contains(req.URL.Path, "/blobs/") {
			http.Redirect(w, req, "/storage", http.StatusTemporaryRedirect)
			return
		}
		for range 2 {
			_, _ = w.Write(make([]byte, size)) // the client reports an error
			_ = http.NewResponseController(w).Flush()
			<-next
		}
	})
	blob, err := r.client(t, upstream.Options{}).Blob(t.Context(), repository, layerDigest, upstream.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	buffer := make([]byte, size)
	for range 2 {
		awaitQueued(t, blob, size/2)
		if _, err := io.ReadFull(blob, buffer); err != nil {
			t.Fatal(err)
		}
		if n := blob.Queued(); n != 0 {
			t.Errorf("%d bytes are left after all were read", n)
		}
		next <- struct{}{}
	}
	if _, err := blob.Read(buffer); err != io.EOF {
		t.Error(err)
	}
	if n := (&upstream.Blob{}).Queued(); n != 0 {
		t.Errorf("%d bytes without a connection", n)
	}
}

func awaitQueued(t *testing.T, blob *upstream.Blob, atLeast int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for blob.Queued() < atLeast {
		select {
		case <-poll.C:
		case <-ctx.Done():
			t.Fatalf("%d bytes are queued, want at least %d", blob.Queued(), atLeast)
		}
	}
}
