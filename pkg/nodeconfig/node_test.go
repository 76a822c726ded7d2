// SPDX-License-Identifier: Apache-2.0

package nodeconfig

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

// patience is how long a test waits for what has to happen. Only a failing test takes as long.
const patience = 20 * time.Second

// node is the file system of a node on which the script runs as systemd would run it.
type node struct {
	root string
	env  []string
	// bundle are the roots that configure writes.
	bundle   string
	journal  journal
	program  *exec.Cmd
	finished chan error
}

// newNode makes a node with an enabled unit on which the rounds of probes are 50 ms apart.
func newNode(t *testing.T, env ...string) *node {
	t.Helper()
	n := &node{root: t.TempDir()}
	n.env = append(append(os.Environ(), "REGISTRY_CACHE_ROOT="+n.root, "REGISTRY_CACHE_INTERVAL=5"), env...)
	for _, directory := range []string{"run", "etc/containerd/certs.d", filepath.Dir(enabledLink)} {
		if err := os.MkdirAll(n.path(directory), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../"+UnitName, n.path(enabledLink)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n.program != nil {
			n.kill(t)
		}
		if t.Failed() {
			t.Logf("journal:\n%s", n.journal.String())
		}
	})
	return n
}

const enabledLink = "etc/systemd/system/multi-user.target.wants/" + UnitName

func (n *node) path(elements ...string) string {
	return filepath.Join(append([]string{n.root}, elements...)...)
}

func (n *node) hostsTOML(upstream string) string {
	return n.path("etc/containerd/certs.d", upstream, "hosts.toml")
}

// configure does the part of gardener-node-agent: it writes the files for caches and deletes those of earlier ones, but
// not their directories.
func (n *node) configure(t *testing.T, caches ...v1alpha3.RegistryCacheStatus) {
	t.Helper()
	config, skipped := New(caches, n.bundle)
	if len(skipped) > 0 {
		t.Fatal(skipped)
	}
	wanted := map[string]bool{}
	for _, f := range config.Files {
		n.write(t, f.Path, f.Content.Inline.Data)
		if err := os.Chmod(n.path(f.Path), os.FileMode(*f.Permissions)); err != nil {
			t.Fatal(err)
		}
		wanted[n.path(f.Path)] = true
	}
	present, err := filepath.Glob(n.path(HostsDirectory, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(present, n.path(CABundlePath)) {
		if !wanted[path] {
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
		}
	}
}

func (n *node) write(t *testing.T, path, content string) {
	t.Helper()
	path = n.path(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".tmp", []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

func (n *node) command(t *testing.T, arguments ...string) *exec.Cmd {
	t.Helper()
	// Not t.Context(): the node is stopped in a Cleanup, after the context has ended.
	cmd := exec.Command(n.path(ScriptPath), arguments...)
	cmd.Env = n.env
	cmd.Stdout, cmd.Stderr = &n.journal, &n.journal
	cmd.WaitDelay = time.Second
	return cmd
}

// start is ExecStart.
func (n *node) start(t *testing.T) {
	t.Helper()
	n.program = n.command(t, "run")
	if err := n.program.Start(); err != nil {
		t.Fatal(err)
	}
	n.finished = make(chan error, 1)
	go func() { n.finished <- n.program.Wait() }()
}

// stop is `systemctl stop`: SIGTERM to the script alone, then ExecStopPost.
func (n *node) stop(t *testing.T) {
	t.Helper()
	if err := n.program.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-n.finished:
		n.program = nil
		// A child that still holds the output is what systemd kills after the script.
		if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
			t.Errorf("the script ended with %v, want exit code 0", err)
		}
	case <-time.After(patience):
		t.Fatal("the script ignores SIGTERM")
	}
	n.stopPost(t)
}

// kill is what the kernel does when memory runs out.
func (n *node) kill(t *testing.T) {
	t.Helper()
	if err := n.program.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-n.finished
	n.program = nil
}

// stopPost is ExecStopPost.
func (n *node) stopPost(t *testing.T) {
	t.Helper()
	if err := n.command(t, "withdraw").Run(); err != nil {
		t.Errorf("withdraw: %v", err)
	}
}

// awaitContent waits until the file at path has this content; "" means that it must not exist.
func (n *node) awaitContent(t *testing.T, path, want string) {
	t.Helper()
	eventually(t, func() error {
		got, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if string(got) != want {
			return fmt.Errorf("%s is %q, want %q", path, got, want)
		}
		return nil
	})
}

func (n *node) awaitJournal(t *testing.T, want string) {
	t.Helper()
	eventually(t, func() error {
		if got := n.journal.String(); !strings.Contains(got, want) {
			return fmt.Errorf("the journal has no %q:\n%s", want, got)
		}
		return nil
	})
}

// awaitRounds waits until the script has probed the cache three times more, hence has applied what the first of them
// answered, and what was on the disk before it.
func (n *node) awaitRounds(t *testing.T, c *cache) {
	t.Helper()
	before := c.probes.Load()
	eventually(t, func() error {
		if got := c.probes.Load(); got < before+3 {
			return fmt.Errorf("%s got %d probes in all, want %d", c.Upstream, got, before+3)
		}
		return nil
	})
}

func eventually(t *testing.T, check func() error) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after %s: %v", patience, err)
		}
	}
}

func mustNotExist(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s exists (%v)", path, err)
	}
}

// journal collects what the script prints. It is safe for concurrent use.
type journal struct {
	mutex sync.Mutex // guards text
	text  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mutex.Lock()
	defer j.mutex.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mutex.Lock()
	defer j.mutex.Unlock()
	return j.text.String()
}

// What a cache does with a probe.
const (
	answers int32 = iota
	unavailable
	hangs
	stalls
	redirects
	alternates
	late // answers after two seconds
)

// cache is a registry cache as far as a probe sees it: a status for New, and a server behind its endpoint.
type cache struct {
	v1alpha3.RegistryCacheStatus
	behaviour atomic.Int32
	probes    atomic.Int64 // that have been answered or, while it hangs, received
	held      atomic.Int64 // how many of the next probes are not answered

	// certificate makes it speak https.
	certificate atomic.Pointer[tls.Certificate]
	approaches
	// wrap stands between the clients and the server. It may be nil.
	wrap func(net.Listener) net.Listener

	listener net.Listener
	server   *http.Server
	closing  chan struct{}
}

func newCache(t *testing.T, upstream string) *cache {
	t.Helper()
	return newCacheAt(t, upstream, "127.0.0.1:0")
}

func newCacheAt(t *testing.T, upstream, address string) *cache {
	t.Helper()
	c := &cache{RegistryCacheStatus: v1alpha3.RegistryCacheStatus{Upstream: upstream, RemoteURL: "https://" + upstream}}
	c.listen(t, address)
	c.Endpoint = "http://" + c.listener.Addr().String()
	t.Cleanup(func() { c.close(t) })
	return c
}

func (c *cache) listen(t *testing.T, address string) {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	c.listener, c.closing = listener, make(chan struct{})
	if c.wrap != nil {
		listener = c.wrap(listener)
	}
	if c.certificate.Load() != nil {
		listener = tls.NewListener(listener, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c.handshakes.Add(1)
			return c.certificate.Load(), nil
		}})
	}
	c.server = &http.Server{Handler: c, ReadHeaderTimeout: patience, ErrorLog: log.New(&c.approaches, "", 0)}
	go c.server.Serve(listener) // ends with ErrServerClosed
}

// close has the kernel refuse connections, as kube-proxy does for a Service without endpoints.
func (c *cache) close(t *testing.T) {
	t.Helper()
	if c.server == nil {
		return
	}
	close(c.closing)
	if err := c.server.Close(); err != nil {
		t.Errorf("closing the cache of %s: %v", c.Upstream, err)
	}
	// The server may not know of it yet.
	if err := c.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Errorf("closing the listener of %s: %v", c.Upstream, err)
	}
	c.server = nil
}

func (c *cache) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer c.probes.Add(1)
	if r.URL.Path != "/v2/" || r.Method != http.MethodGet {
		http.Error(w, "not a probe", http.StatusTeapot)
		return
	}
	if c.held.Add(-1) >= 0 {
		c.hold(r)
		return
	}
	switch c.behaviour.Load() {
	case unavailable:
		w.WriteHeader(http.StatusServiceUnavailable)
	case hangs:
		c.hold(r)
	case stalls:
		w.Header().Set("Content-Length", "1000")
		w.WriteHeader(http.StatusOK)
		if err := http.NewResponseController(w).Flush(); err == nil {
			c.hold(r)
		}
	case redirects:
		http.Redirect(w, r, "/elsewhere/v2/", http.StatusFound)
	case alternates:
		if c.probes.Load()%2 == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	case late:
		select {
		case <-time.After(2 * time.Second):
		case <-r.Context().Done():
		case <-c.closing:
		}
	}
}

func (c *cache) hold(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-c.closing:
	}
}

// through is the hosts.toml with the cache, direct the one without.
func (c *cache) through() string { return hostsTOML(c.RegistryCacheStatus) }

func (c *cache) direct() string {
	return fmt.Sprintf("%s\nserver = %q\n", Marker, c.RemoteURL)
}
