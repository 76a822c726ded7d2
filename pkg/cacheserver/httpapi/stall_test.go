// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// oneConnection is a listener for a single connection.
type oneConnection struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l *oneConnection) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *oneConnection) Close() error   { close(l.done); return nil }
func (l *oneConnection) Addr() net.Addr { return &net.TCPAddr{} }

// connect serves the cache over a connection without buffers, in the time of a synctest bubble.
func connect(t *testing.T, c Cache, stall time.Duration) net.Conn {
	t.Helper()
	client, conn := net.Pipe()
	l := &oneConnection{make(chan net.Conn, 1), make(chan struct{})}
	l.conns <- conn
	server := &http.Server{Handler: New("docker.io", c, Options{StallTimeout: stall})}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		<-ended
		client.Close()
	})
	return client
}

func send(t *testing.T, conn net.Conn, request string) {
	t.Helper()
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
}

const getLayer = "GET /v2/a/blobs/sha256:9834876dcfb05cb167a5c24953eba58c4ac89b1adf57f28f2f9d09af107ee8f0 HTTP/1.1\r\nHost: cache\r\n\r\n"

// closing closes a channel when it is closed.
type closing struct {
	io.ReadSeeker
	closed chan struct{}
}

func (c closing) Close() error { close(c.closed); return nil }

func TestStalledClientIsCut(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, make([]byte, 8*writeChunk), 0o644); err != nil {
		t.Fatal(err)
	}
	const stall = time.Minute
	for name, open := range map[string]func() (io.ReadSeekCloser, chan struct{}){
		"file": func() (io.ReadSeekCloser, chan struct{}) {
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			closed := make(chan struct{})
			return watchedFile{f, closed}, closed
		},
		"stream": func() (io.ReadSeekCloser, chan struct{}) {
			closed := make(chan struct{})
			return closing{strings.NewReader(strings.Repeat("x", 8*writeChunk)), closed}, closed
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			content, closed := open()
			conn := connect(t, &fakeCache{blob: blobOf(content, 8*writeChunk)}, stall)
			send(t, conn, getLayer)
			// It takes a little every 50 s, then nothing more.
			start := time.Now()
			buffer := make([]byte, 4*writeChunk/3)
			for range 3 {
				time.Sleep(stall - time.Second)
				if _, err := io.ReadFull(conn, buffer); err != nil {
					t.Fatalf("%s: cut after %s: %v", name, time.Since(start), err)
				}
			}
			last := time.Now()
			<-closed
			if waited := time.Since(last); waited <= 0 || waited > stall {
				t.Errorf("%s: cut %s after the client stalled, want at most %s", name, waited, stall)
			}
		})
	}
}

// watchedFile is a file that closes a channel when it is closed.
type watchedFile struct {
	*os.File
	closed chan struct{}
}

func (f watchedFile) Close() error { close(f.closed); return f.File.Close() }

// slow gives a byte at a time.
type slow struct {
	*strings.Reader
	pause time.Duration
}

func (s slow) Read(p []byte) (int, error) {
	time.Sleep(s.pause)
	return s.Reader.Read(p[:min(1, len(p))])
}

func (slow) Close() error { return nil }

func TestSlowUpstreamIsNoStalledClient(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{10, -1} {
		synctest.Test(t, func(t *testing.T) {
			conn := connect(t, &fakeCache{blob: blobOf(slow{strings.NewReader(layer), 50 * time.Second}, size)}, time.Minute)
			send(t, conn, getLayer)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if body, err := io.ReadAll(resp.Body); string(body) != layer || err != nil {
				t.Errorf("size %d: %q, %v", size, body, err)
			}
		})
	}
}

func TestRequestBodyIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		conn := connect(t, &fakeCache{}, time.Minute)
		send(t, conn, "GET /v2/ HTTP/1.1\r\nHost: cache\r\nContent-Length: 10\r\n\r\n12345")
		start := time.Now()
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.ReadAll(resp.Body); err != nil {
			t.Error(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("the connection is not closed")
		}
		if waited := time.Since(start); waited > bodyTimeout {
			t.Errorf("ended after %s, want at most %s", waited, bodyTimeout)
		}
	})
}
