// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/registry-cache/extension/pkg/cacheserver/blobs"
)

// blockedFile is a file of a volume that blocks sendfile after the first chunk. It is a model of volume.File.
type blockedFile struct {
	*os.File
	reads   int
	blocked chan struct{}        // closed when sendfile is blocked
	release chan struct{}        // ends the block
	checks  chan func(hung bool) // receives the check of the guard
	ended   sync.Once
}

func (f *blockedFile) Guard(check func(hung bool)) (end func()) {
	var mu sync.Mutex // guards ended
	ended := false
	f.checks <- func(hung bool) {
		mu.Lock()
		defer mu.Unlock()
		if !ended {
			check(hung)
		}
	}
	return func() {
		mu.Lock()
		defer mu.Unlock()
		ended = true
	}
}

func (f *blockedFile) SyscallConn() (syscall.RawConn, error) {
	conn, err := f.File.SyscallConn()
	return blockedConn{conn, f}, err
}

type blockedBlob struct {
	*blockedFile
	missOf
}

type blockedConn struct {
	syscall.RawConn
	file *blockedFile
}

func (c blockedConn) Read(call func(uintptr) bool) error {
	if c.file.reads++; c.file.reads > 1 {
		c.file.ended.Do(func() { close(c.file.blocked) })
		<-c.file.release
	}
	return c.RawConn.Read(call)
}

// A response that is blocked by the volume ends for the client although sendfile does not return: when the volume is hung,
// or when the client has received everything that was read and the rest does not arrive. A client that has not read
// everything is not cut, because it may be the reason of the delay.
func TestGuard(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		// readFirst reads the available bytes before the first check.
		readFirst bool
		checks    []bool
		cut       bool
	}{
		{"hung volume", false, []bool{true}, true},
		{"blocked read", true, []bool{false, false}, true},
		{"blocked read, first check", true, []bool{false}, false},
		{"slow client", false, []bool{false, false, false}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "blob")
			const size = 2 * writeChunk
			if err := os.WriteFile(path, make([]byte, size), 0o644); err != nil {
				t.Fatal(err)
			}
			opened, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			file := &blockedFile{File: opened, blocked: make(chan struct{}), release: make(chan struct{}), checks: make(chan func(bool), 1)}
			var log bytes.Buffer // read after served
			served := make(chan struct{})
			handler := New("docker.io", &fakeCache{blob: func() blobs.Blob { return &blockedBlob{file, missOf(size)} }},
				Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
			accepted := make(chan *net.TCPConn, 1)
			connContext := func(ctx context.Context, conn net.Conn) context.Context {
				accepted <- conn.(*net.TCPConn)
				return ConnContext(ctx, conn)
			}
			server := &http.Server{ConnContext: connContext, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(served)
				handler.ServeHTTP(w, r)
			})}
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- server.Serve(listener) }()
			client, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			if !test.readFirst {
				// Otherwise the kernel could buffer the whole content for the client.
				if err := client.(*net.TCPConn).SetReadBuffer(32 << 10); err != nil {
					t.Fatal(err)
				}
			}
			send(t, client, getLayer)
			reader := bufio.NewReader(client)
			var received int64
			read := func(n int64) error {
				got, err := io.CopyN(io.Discard, reader, n)
				received += got
				return err
			}
			response, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			if response.ContentLength != size {
				t.Fatalf("Content-Length: %d", response.ContentLength)
			}
			check := <-file.checks
			conn := <-accepted
			for !test.readFirst && isIdle(conn) {
				runtime.Gosched() // until the client is the reason of the delay
			}
			if test.readFirst {
				if err := read(writeChunk); err != nil {
					t.Fatal(err)
				}
				<-file.blocked
			}
			for _, hung := range test.checks {
				check(hung)
			}
			if test.cut {
				if err := read(size - received); err != io.EOF {
					t.Errorf("got %v after %d bytes, want EOF", err, received)
				}
				close(file.release)
			} else {
				close(file.release)
				if err := read(size - received); err != nil {
					t.Errorf("got %v after %d bytes, want the whole content", err, received)
				}
			}
			if err := client.Close(); err != nil {
				t.Error(err)
			}
			<-served
			if err := server.Close(); err != nil {
				t.Error(err)
			}
			<-ended
			if logged := strings.Contains(log.String(), errStalledVolume.Error()); logged != test.cut {
				t.Errorf("the cause is logged: %t, want %t: %s", logged, test.cut, log.String())
			}
		})
	}
}
