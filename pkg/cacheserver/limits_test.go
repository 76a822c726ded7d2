// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/pkg/oci"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	const limit = 3
	u := newOrigin(t, upstream.Options{})
	c := start(t, u.config(t), cacheserver.Options{MaxConnections: limit})
	connect := func() net.Conn {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", c.Address())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	answered := func(conn net.Conn) bool {
		if _, err := io.WriteString(conn, "GET /v2/ HTTP/1.1\r\nHost: cache\r\n\r\n"); err != nil {
			return false
		}
		if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, len("HTTP/1.1 200"))
		_, err := io.ReadFull(conn, answer)
		return err == nil && string(answer) == "HTTP/1.1 200"
	}
	var open []net.Conn
	for range limit {
		conn := connect()
		if !answered(conn) {
			t.Fatal("refused below the limit")
		}
		open = append(open, conn)
	}
	for range limit {
		if answered(connect()) {
			t.Error("served beyond the limit")
		}
	}
	metrics := string(c.debug(t, "/metrics").body)
	for _, line := range []string{"registry_cache_connections 3", "registry_cache_connections_limit 3", "registry_cache_connections_refused_total 3"} {
		if !strings.Contains(metrics, line+"\n") {
			t.Errorf("the metrics lack %s", line)
		}
	}
	if err := open[0].Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a place is free", func() bool { return answered(connect()) })
}

// The answer to a request for no resource is an error of the OCI distribution API, too.
func TestOptionsOfTheServer(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	c := start(t, u.config(t), cacheserver.Options{})
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", c.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "OPTIONS * HTTP/1.1\r\nHost: cache\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var body oci.ErrorBody
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil || resp.StatusCode != http.StatusMethodNotAllowed || len(body.Errors) != 1 {
		t.Errorf("status %d, %+v, %v", resp.StatusCode, body, err)
	}
}

func TestRequestsAreBounded(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	c := start(t, u.config(t), cacheserver.Options{})
	long := c.do(t, "GET", "tags/list?last="+strings.Repeat("x", 4<<10))
	var body oci.ErrorBody
	if err := json.Unmarshal(long.body, &body); long.status != http.StatusRequestURITooLong || err != nil || len(body.Errors) != 1 {
		t.Errorf("long URL: %d %s, %v", long.status, long.body, err)
	}
	if got := c.do(t, "GET", "manifests/v1", "Authorization", strings.Repeat("x", 8<<10)); got.status != http.StatusNotFound {
		t.Errorf("header of 8 KiB: %d", got.status)
	}
	if got := c.do(t, "GET", "manifests/v1", "Authorization", strings.Repeat("x", 32<<10)); got.status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("header of 32 KiB: %d", got.status)
	}
	if got := u.requests(); len(got) != 1 || got[0] != "HEAD manifest v1" {
		t.Errorf("the upstream was asked %v", got)
	}
}

func TestTransfersAreBounded(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	digests, contents := layers(t, u.push(t, tag, 1))
	c := start(t, u.config(t), cacheserver.Options{MaxTransfers: 1, QueueTimeout: 50 * time.Millisecond})
	proceed := make(chan struct{})
	u.inject(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, digests[0]) {
			return false
		}
		w.Header().Set("Content-Length", itoa(len(contents[0])))
		w.Write(contents[0][:1000])
		http.NewResponseController(w).Flush()
		<-proceed
		w.Write(contents[0][1000:])
		return true
	})
	var work sync.WaitGroup
	for range 10 { // they share the one transfer
		resp := c.open(t, "GET", "blobs/"+digests[0])
		work.Go(func() {
			defer resp.Body.Close()
			if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, contents[0]) {
				t.Errorf("%d of %d bytes, %v", len(got), len(contents[0]), err)
			}
		})
	}
	got := c.do(t, "GET", "blobs/"+digests[1])
	if got.status != http.StatusServiceUnavailable || !strings.Contains(string(got.body), "too many requests to the upstream") {
		t.Errorf("beyond the limit: %d %s", got.status, got.body)
	}
	if got := c.do(t, "HEAD", "manifests/v1"); got.status != http.StatusOK {
		t.Errorf("a tag meanwhile: %d", got.status)
	}
	close(proceed)
	work.Wait()
	c.settle(t)
	if got := c.do(t, "GET", "blobs/"+digests[1]); got.status != http.StatusOK || !bytes.Equal(got.body, contents[1]) {
		t.Errorf("afterwards: %d, %d bytes", got.status, len(got.body))
	}
}
