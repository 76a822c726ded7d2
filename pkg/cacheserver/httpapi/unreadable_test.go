// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/registry-cache/extension/pkg/cacheserver/blobs"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

// volumeBlob is a stored blob in a file of a volume.
type volumeBlob struct {
	*volume.File
	hitOf
}

// A stored blob is reported as unreadable if the volume could not read it, and not if the client has disconnected.
func TestUnreadableBlob(t *testing.T) {
	t.Parallel()
	const size = 64 << 20 // more than the buffers of a connection
	for _, test := range []struct {
		name       string
		tls, fault bool
	}{
		{"http, error of the volume", false, true},
		{"http, client disconnects", false, false},
		{"https, error of the volume", true, true},
		{"https, client disconnects", true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			path := filepath.Join(root, "blob")
			if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
				t.Fatal(err)
			}
			var reads atomic.Int64
			files := volume.New(root, volume.Options{Fault: func(op volume.Op, _ string) error {
				if op == volume.OpRead && test.fault && reads.Add(1) > 2 {
					return syscall.EIO
				}
				return nil
			}})
			defer files.Close()
			file, err := files.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			cache := &fakeCache{blob: func() blobs.Blob { return &volumeBlob{file, hitOf{missOf(size)}} }}
			handler := New("docker.io", cache, Options{})
			served := make(chan struct{})
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(served)
				handler.ServeHTTP(w, r)
			}))
			if test.tls {
				server.StartTLS()
			} else {
				server.Start()
			}
			defer server.Close()
			resp, err := server.Client().Get(server.URL + "/v2/a/blobs/" + layerDigest.String())
			if err != nil {
				t.Fatal(err)
			}
			if test.fault {
				if n, err := io.Copy(io.Discard, resp.Body); err == nil || n >= size {
					t.Errorf("the client received %d bytes, %v", n, err)
				}
			}
			if err := resp.Body.Close(); err != nil {
				t.Error(err)
			}
			<-served
			if !test.fault {
				if len(cache.unreadable) > 0 || cache.served != 1 {
					t.Errorf("unreadable: %v, %d responses served", cache.unreadable, cache.served)
				}
				return
			}
			if len(cache.unreadable) != 1 || !errors.Is(cache.unreadable[0], syscall.EIO) || cache.served != 0 {
				t.Errorf("unreadable: %v, want EIO; %d responses served", cache.unreadable, cache.served)
			}
		})
	}
}
