// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

func TestDebug(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	u.push(t, tag, 1)
	c := start(t, u.config(t), cacheserver.Options{})
	for path, want := range map[string]string{"/healthz": "ok\n", "/readyz": "ok\n", "/volume": `"state":"ok"`} {
		if got := c.debug(t, path); got.status != 200 || !strings.Contains(string(got.body), want) {
			t.Errorf("%s: %d, %.100q", path, got.status, got.body)
		}
	}
	for range 2 {
		if err := c.pull(t.Context(), tag); err != nil {
			t.Fatal(err)
		}
		c.settle(t)
	}
	// An answer is counted after its last byte has left.
	eventually(t, "all answers are counted", func() bool {
		return c.metric(t, `registry_cache_requests_total{kind="blob",outcome="hit"}`) == 3
	})
	metrics := string(c.debug(t, "/metrics").body)
	for _, line := range []string{
		// A pull is one manifest by tag, one config and two layers.
		`registry_cache_requests_total{kind="manifest",outcome="miss"} 1`,
		`registry_cache_requests_total{kind="manifest",outcome="hit"} 1`,
		`registry_cache_requests_total{kind="blob",outcome="miss"} 3`,
		`registry_cache_requests_total{kind="blob",outcome="hit"} 3`,
		`registry_cache_followers_total 0`,
		`registry_cache_storage_errors_total 0`,
		`registry_cache_upstream_requests_total{status="200"} 6`, // HEAD, GET and three blobs, HEAD,
	} {
		if !strings.Contains(metrics, line+"\n") {
			t.Errorf("the metrics lack %s", line)
		}
	}
	if strings.Contains(metrics, "registry_cache_client_bytes_total 0\n") || strings.Contains(metrics, "registry_cache_upstream_bytes_total 0\n") {
		t.Error("bytes were not counted")
	}
	if err := os.RemoveAll(c.root); err != nil {
		t.Fatal(err)
	}
	if got := c.debug(t, "/readyz"); got.status != 503 {
		t.Errorf("ready without a volume: %d", got.status)
	}
}

// Profiles are served only if the configuration enables them: the debug port is open to all pods.
func TestProfiles(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	cfg := u.config(t)
	closed := start(t, cfg, cacheserver.Options{})
	cfg.Storage.Root, cfg.Debug.PProf = t.TempDir(), true
	opened := start(t, cfg, cacheserver.Options{})
	for path, want := range map[string]string{
		"/debug/pprof/": "goroutine", "/debug/pprof/cmdline": os.Args[0], "/debug/pprof/heap?debug=1": "heap profile", "/debug/pprof/symbol": "num_symbols",
	} {
		if got := opened.debug(t, path); got.status != 200 || !strings.Contains(string(got.body), want) {
			t.Errorf("%s with debug.pprof: %d, %.100q", path, got.status, got.body)
		}
		if got := closed.debug(t, path); got.status != 404 {
			t.Errorf("%s without debug.pprof: %d, want 404", path, got.status)
		}
	}
	for _, path := range []string{"/debug/pprof/profile?seconds=1", "/debug/pprof/trace?seconds=1"} {
		if got := closed.debug(t, path); got.status != 404 {
			t.Errorf("%s without debug.pprof: %d, want 404", path, got.status)
		}
	}
}

func TestDrain(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	digests, contents := layers(t, u.push(t, tag, 1))
	c := start(t, u.config(t), cacheserver.Options{})
	proceed := make(chan struct{})
	u.inject(onBlobs(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", itoa(len(contents[0])))
		w.Write(contents[0][:1000])
		http.NewResponseController(w).Flush()
		<-proceed
		w.Write(contents[0][1000:])
	}))
	resp := c.open(t, "GET", "blobs/"+digests[0])
	defer resp.Body.Close()
	stopped := make(chan error, 1)
	go func() { stopped <- c.stop() }()
	eventually(t, "not ready", func() bool { return c.debug(t, "/readyz").status == 503 })
	eventually(t, "new connections are refused", func() bool {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+c.Address()+"/v2/", nil)
		if err != nil {
			t.Fatal(err)
		}
		transport := &http.Transport{DisableKeepAlives: true}
		resp, err := transport.RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		return err != nil
	})
	close(proceed)
	if body, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(body, contents[0]) {
		t.Errorf("%d of %d bytes, %v", len(body), len(contents[0]), err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(c.root, "docker/registry/v2/blobs/sha256", digests[0][7:9], digests[0][7:], "data")); err != nil {
		t.Errorf("the blob that was drained is not stored: %v", err)
	}
}

func TestDrainIsBounded(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	digests, contents := layers(t, u.push(t, tag, 1))
	c := start(t, u.config(t), cacheserver.Options{DrainTimeout: 50 * time.Millisecond})
	u.inject(onBlobs(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", itoa(len(contents[0])))
		w.Write(contents[0][:1000])
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	resp := c.open(t, "GET", "blobs/"+digests[0])
	defer resp.Body.Close()
	if err := c.stop(); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the body that was cut off looks complete")
	}
	if found := notKept(t, c.root); len(found) > 0 {
		t.Errorf("left behind: %v", found)
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	u.push(t, tag, 1)
	cfg := u.config(t)
	dir := t.TempDir()
	cfg.Listen.TLS.CertFile, cfg.Listen.TLS.KeyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	one, two := newCA(t), newCA(t)
	if _, err := cacheserver.New(cfg, cacheserver.Options{}); err == nil || !strings.Contains(err.Error(), cfg.Listen.TLS.CertFile) {
		t.Errorf("without the files: %v", err)
	}
	issue(t, one, dir, time.Now())
	c := start(t, cfg, cacheserver.Options{})
	status := func(ca *upstream.CA) (int, error) { return c.statusOverTLS(t, ca) }
	if got, err := status(one); got != 200 || err != nil {
		t.Errorf("%d, %v", got, err)
	}
	if _, err := status(two); err == nil {
		t.Error("trusted by another authority")
	}
	issue(t, two, dir, time.Now().Add(time.Hour))
	if got, err := status(two); got != 200 || err != nil {
		t.Errorf("after the rotation: %d, %v", got, err)
	}
	if err := os.Remove(cfg.Listen.TLS.CertFile); err != nil {
		t.Fatal(err)
	}
	if got, err := status(two); got != 200 || err != nil {
		t.Errorf("after the loss of the file: %d, %v", got, err)
	}
}

// Nodes ask like this in each round of their probes, and the log must not have a line for each of them.
func TestRequestWithoutTLS(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	cfg := u.config(t)
	dir := t.TempDir()
	cfg.Listen.TLS.CertFile, cfg.Listen.TLS.KeyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	issue(t, newCA(t), dir, time.Now())
	c := start(t, cfg, cacheserver.Options{})
	conn, err := net.Dial("tcp", c.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /"); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.0 400 ") {
		t.Errorf("%q, %v", answer, err)
	}
	if _, err := c.statusOverTLS(t, newCA(t)); err == nil {
		t.Error("trusted by another authority")
	}
	eventually(t, "what other clients do is logged", func() bool { return strings.Contains(c.log.String(), "bad certificate") })
	if got := c.log.String(); strings.Contains(got, "HTTP request") {
		t.Errorf("logged:\n%s", got)
	}
}

// Files are not always replaced at once. Until both are new, the old pair serves.
func TestTLSFilesReplacedOneByOne(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	cfg := u.config(t)
	dir, next := t.TempDir(), t.TempDir()
	cfg.Listen.TLS.CertFile, cfg.Listen.TLS.KeyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	authorities := []*upstream.CA{newCA(t)}
	issue(t, authorities[0], dir, time.Now())
	c := start(t, cfg, cacheserver.Options{})
	for i, order := range [][]string{{"tls.crt", "tls.key"}, {"tls.key", "tls.crt"}} {
		authorities = append(authorities, newCA(t))
		issue(t, authorities[i+1], next, time.Now().Add(time.Duration(i+1)*time.Hour))
		for j, file := range order {
			if err := os.Rename(filepath.Join(next, file), filepath.Join(dir, file)); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if got, err := c.statusOverTLS(t, authorities[i+j]); got != 200 || err != nil {
					t.Errorf("%s first, %d of 2 replaced: %d, %v", order[0], j+1, got, err)
				}
			}
		}
	}
}

func TestNewFails(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	cfg := u.config(t)
	cfg.Upstream.Host = ""
	if _, err := cacheserver.New(cfg, cacheserver.Options{}); err == nil || !strings.Contains(err.Error(), "upstream.host") {
		t.Errorf("invalid configuration: %v", err)
	}
	c := start(t, u.config(t), cacheserver.Options{})
	cfg = u.config(t)
	cfg.Debug.Address = c.DebugAddress()
	if _, err := cacheserver.New(cfg, cacheserver.Options{}); err == nil || !strings.Contains(err.Error(), "listening for health and metrics") {
		t.Errorf("address in use: %v", err)
	}
}

// Without a usable volume, pulls pass through.
func TestImpossibleRoot(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	u.push(t, tag, 1)
	cfg := u.config(t)
	cfg.Storage.Root = filepath.Join(os.Args[0], "below-a-file")
	c := start(t, cfg, cacheserver.Options{})
	if err := c.pull(t.Context(), tag); err != nil {
		t.Error(err)
	}
}

func TestCloseWithoutRun(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	s, err := cacheserver.New(u.config(t), cacheserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func newCA(t testing.TB) *upstream.CA {
	t.Helper()
	ca, err := upstream.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// issue writes a key pair for the loopback address, as if at the time.
func issue(t testing.TB, ca *upstream.CA, dir string, at time.Time) {
	t.Helper()
	pair, err := ca.Certificate("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"tls.key": {Type: "PRIVATE KEY", Bytes: key},
		"tls.crt": {Type: "CERTIFICATE", Bytes: pair.Certificate[0]},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
}

// statusOverTLS sends a request on a new connection that trusts the authority alone.
func (c *cache) statusOverTLS(t *testing.T, ca *upstream.CA) (int, error) {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.PEM())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+c.Address()+"/v2/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.ProtoMajor != 1 {
		t.Errorf("protocol %s", resp.Proto)
	}
	return resp.StatusCode, nil
}
