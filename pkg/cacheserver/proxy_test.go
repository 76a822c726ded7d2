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
	"github.com/registry-cache/extension/pkg/contract"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// connectProxy is a proxy that lets all names lead to one address.
type connectProxy struct {
	*httptest.Server
	target string
	// rejects makes it require other credentials.
	rejects atomic.Bool

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
		if p.rejects.Load() {
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
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

// take returns the requests since the last call.
func (p *connectProxy) take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	requests := p.requests
	p.requests = nil
	return requests
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

// proxiedUpstream is a cache in another process whose upstream only the proxy can reach: Go reads the environment once in a
// process, and never uses a proxy for loopback, so the name of the upstream is one that only the proxy resolves.
type proxiedUpstream struct {
	*faulty
	proxy *connectProxy
	cfg   config.Config
}

const proxiedHost = "registry.test" // reserved by RFC 6761

func newProxiedUpstream(t *testing.T) *proxiedUpstream {
	t.Helper()
	u := newFaulty(t, upstream.Options{DefaultHost: proxiedHost})
	image := u.push(t, tag, 1)
	if err := u.Push(t.Context(), proxiedHost+"/"+repository+":"+tag, image); err != nil {
		t.Fatal(err)
	}
	ca := newCA(t)
	var certificate atomic.Pointer[tls.Certificate]
	certificate.Store(certificateOf(t, ca, proxiedHost))
	front := serveTLS(t, u.Handler(), &certificate)
	cfg := u.config(t)
	cfg.Upstream.Host, cfg.Upstream.RemoteURL = proxiedHost, "https://"+proxiedHost
	if err := os.WriteFile(cfg.Upstream.CAFile, ca.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	return &proxiedUpstream{faulty: u, proxy: newConnectProxy(t, front.Listener.Addr().String()), cfg: cfg}
}

// variable returns the variable of the environment for the proxy. user is empty or ends with "@".
func (u *proxiedUpstream) variable(user string) string {
	return "HTTPS_PROXY=http://" + user + u.proxy.Listener.Addr().String()
}

// get requests content from the cache at address.
func (u *proxiedUpstream) get(t *testing.T, address, name string) {
	t.Helper()
	status, got := fetch(t, "http://"+address+"/v2/"+repository+"/"+name)
	if status != http.StatusOK || !bytes.Equal(got, u.contents[name[strings.IndexByte(name, '/')+1:]]) {
		t.Errorf("%s: %d, %d bytes", name, status, len(got))
	}
}

// fetch sends a GET request over a connection of its own and returns the whole response.
func fetch(t *testing.T, url string) (status int, body []byte) {
	t.Helper()
	var transport http.Transport
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

// expectConnects compares the requests of the proxy since the last call. There must be at least one, with these credentials.
func (u *proxiedUpstream) expectConnects(t *testing.T, credentials string) {
	t.Helper()
	want := "CONNECT " + proxiedHost + ":443 Basic " + base64.StdEncoding.EncodeToString([]byte(credentials))
	seen := u.proxy.take()
	for _, got := range seen {
		if got != want {
			t.Errorf("the proxy got %q, want %q", got, want)
		}
	}
	if len(seen) == 0 {
		t.Error("the proxy got nothing")
	}
}

// expectNoSecret ends the cache and verifies that its log contains no password.
func (u *proxiedUpstream) expectNoSecret(t *testing.T, stop func() string) {
	t.Helper()
	u.proxy.CloseClientConnections()
	if log := stop(); strings.Contains(log, "SECRET") {
		t.Errorf("the password of the proxy is in the log:\n%s", log)
	}
}

func TestProxy(t *testing.T) {
	t.Parallel()
	u := newProxiedUpstream(t)
	address, stop := startProcess(t, u.cfg, u.variable("robot:passwordSECRET@"), "NO_PROXY=other.test")
	for _, name := range []string{u.tag(), u.blob()} {
		u.get(t, address, name)
	}
	u.expectConnects(t, "robot:passwordSECRET")
	for _, q := range u.Requests() {
		if q.Host != proxiedHost || q.UserAgent != "registry-cache/dev" {
			t.Errorf("the upstream got a request for %s from %q", q.Host, q.UserAgent)
		}
	}
	u.expectNoSecret(t, stop)
}

// The files are replaced by the kubelet; the next request uses them.
func TestProxyCredentials(t *testing.T) {
	t.Parallel()
	u := newProxiedUpstream(t)
	u.cfg.Upstream.ProxyCredentialsDir = t.TempDir()
	write := func(file, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(u.cfg.Upstream.ProxyCredentialsDir, file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("proxy-username", "robot")
	write("proxy-password", "p@ss:/SECRET\n")
	address, stop := startProcess(t, u.cfg, u.variable(""))
	u.get(t, address, u.tag())
	u.expectConnects(t, "robot:p@ss:/SECRET")
	write("proxy-password", "newSECRET")
	u.get(t, address, u.blob())
	u.expectConnects(t, "robot:newSECRET")
	u.expectNoSecret(t, stop)
}

// freeAddress returns an address of this host that no process listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// docs/operations.md names the text by which the owner of a cache recognizes wrong credentials.
func TestProxyRejectsCredentials(t *testing.T) {
	t.Parallel()
	u := newProxiedUpstream(t)
	u.proxy.rejects.Store(true)
	u.cfg.Debug.Address = freeAddress(t)
	address, stop := startProcess(t, u.cfg, u.variable("robot:passwordSECRET@"))
	if status, body := fetch(t, "http://"+address+"/v2/"+repository+"/"+u.tag()); status < 500 || bytes.Contains(body, []byte("SECRET")) {
		t.Errorf("got %d, %s", status, body)
	}
	_, body := fetch(t, "http://"+u.cfg.Debug.Address+contract.UpstreamPath)
	state, err := contract.DecodeUpstreamState(body)
	if err != nil {
		t.Fatal(err)
	}
	if state.Reachable != contract.ReachableNo || !strings.Contains(state.Message, "Proxy Authentication Required") {
		t.Errorf("got %+v", state)
	}
	u.expectNoSecret(t, stop)
}
