// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/registry-cache/extension/pkg/cacheserver/config"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// connectProxy is a proxy that lets all names lead to one address.
type connectProxy struct {
	*httptest.Server
	target string

	mu       sync.Mutex // guards requests
	requests []string   // "METHOD host:port authorization"
}

func newConnectProxy(t *testing.T, target string) *connectProxy {
	t.Helper()
	p := &connectProxy{target: target}
	var tunnels sync.WaitGroup
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.requests = append(p.requests, r.Method+" "+r.Host+" "+r.Header.Get("Proxy-Authorization"))
		p.mu.Unlock()
		if r.Method != http.MethodConnect {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		there, err := new(net.Dialer).DialContext(r.Context(), "tcp", p.target)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		here, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			there.Close()
			return
		}
		io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
		for from, to := range map[net.Conn]net.Conn{here: there, there: here} {
			tunnels.Go(func() {
				io.Copy(to, from) // until either side leaves
				to.Close()
			})
		}
	}))
	t.Cleanup(func() {
		p.Close()
		tunnels.Wait()
	})
	return p
}

func (p *connectProxy) seen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.requests...)
}

// startProcess runs a server in a process of its own with more variables, until the end of the test. It returns its
// address and, once it has been stopped, its log.
func startProcess(t *testing.T, cfg config.Config, variables ...string) (address string, stop func() string) {
	t.Helper()
	document, err := cfg.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, document, 0o644); err != nil {
		t.Fatal(err)
	}
	process := exec.CommandContext(t.Context(), os.Args[0])
	process.Env = append(append(os.Environ(), serveVariable+"="+file), variables...)
	var log bytes.Buffer
	process.Stderr = &log
	stdout, err := process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceValue(func() string {
		process.Process.Signal(syscall.SIGTERM) // it may have ended
		if err := process.Wait(); err != nil {
			t.Errorf("%v\n%s", err, &log)
		}
		return log.String()
	})
	t.Cleanup(func() { stop() })
	got, err := io.ReadAll(stdout)
	if err != nil || len(got) == 0 {
		t.Fatalf("the process did not say its address: %v\n%s", err, stop())
	}
	return string(got), stop
}

// TestProxy lets the environment name a proxy. Go reads it once in a process, and never uses a proxy for loopback, so
// the server is another process and its upstream a name that only the proxy resolves.
func TestProxy(t *testing.T) {
	t.Parallel()
	const host = "registry.test" // reserved by RFC 6761
	u := newFaulty(t, upstream.Options{DefaultHost: host})
	image := u.push(t, tag, 1)
	if err := u.Push(t.Context(), host+"/"+repository+":"+tag, image); err != nil {
		t.Fatal(err)
	}
	ca := newCA(t)
	var certificate atomic.Pointer[tls.Certificate]
	certificate.Store(certificateOf(t, ca, host))
	front := serveTLS(t, u.Handler(), &certificate)
	proxy := newConnectProxy(t, front.Listener.Addr().String())
	cfg := u.config(t)
	cfg.Upstream.Host, cfg.Upstream.RemoteURL = host, "https://"+host
	if err := os.WriteFile(cfg.Upstream.CAFile, ca.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	address, stop := startProcess(t, cfg, "HTTPS_PROXY=http://robot:passwordSECRET@"+proxy.Listener.Addr().String(), "NO_PROXY=other.test")
	var transport http.Transport
	defer transport.CloseIdleConnections()
	for _, name := range []string{u.tag(), u.blob()} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+address+"/v2/"+repository+"/"+name, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if got, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || !bytes.Equal(got, u.contents[name[strings.IndexByte(name, '/')+1:]]) {
			t.Errorf("%s: %d, %d bytes, %v", name, resp.StatusCode, len(got), err)
		}
	}
	want := "CONNECT " + host + ":443 Basic " + base64.StdEncoding.EncodeToString([]byte("robot:passwordSECRET"))
	for _, got := range proxy.seen() {
		if got != want {
			t.Errorf("the proxy got %q, want %q", got, want)
		}
	}
	if len(proxy.seen()) == 0 {
		t.Error("the proxy got nothing")
	}
	for _, q := range u.Requests() {
		if q.Host != host || q.UserAgent != "registry-cache/dev" {
			t.Errorf("the upstream got a request for %s from %q", q.Host, q.UserAgent)
		}
	}
	proxy.CloseClientConnections()
	if log := stop(); strings.Contains(log, "SECRET") {
		t.Errorf("the password of the proxy is in the log:\n%s", log)
	}
}
