// SPDX-License-Identifier: Apache-2.0

package nodeconfig

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

// approaches counts how clients come to a cache with https. It is the cache's ErrorLog, too.
type approaches struct {
	handshakes, requests atomic.Int64
}

func (a *approaches) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("client sent an HTTP request to an HTTPS server")) {
		a.requests.Add(1)
	}
	return len(p), nil
}

// A TLS handshake in each round of each node would cost a cache more than the pulls do. The stock registry writes a line
// for each request without TLS, and of an engine that is not known nobody knows what it does.
func TestVerifiedInEachFifthRound(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	for engine, quick := range map[string]bool{"registry-cache": true, "distribution": false, "": false} {
		t.Run("engine "+engine, func(t *testing.T) {
			t.Parallel()
			c, n := newTLSCacheAt(t, "docker.io", "127.0.0.1:0", ca), newNode(t)
			c.Engine = engine
			n.bundle = ca.pem
			n.configure(t, c.RegistryCacheStatus)
			n.start(t)
			n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
			const rounds = 20
			before := c.handshakes.Load()
			eventually(t, func() error {
				if got := c.handshakes.Load() - before + c.requests.Load(); got < rounds {
					return fmt.Errorf("%d rounds, want %d", got, rounds)
				}
				return nil
			})
			handshakes, requests := c.handshakes.Load()-before, c.requests.Load()
			if quick && (handshakes < rounds/5-1 || handshakes > rounds/5+1) {
				t.Errorf("%d handshakes and %d requests without TLS, want one handshake in five rounds", handshakes, requests)
			}
			if !quick && requests != 0 {
				t.Errorf("%d requests without TLS", requests)
			}
			if got := n.journal.lines(); len(got) != 1 {
				t.Errorf("nothing changed, and the journal has %d lines:\n%s", len(got), n.journal.String())
			}
		})
	}
}

// A process that is stopped: the kernel goes on to accept connections for it.
func TestCacheInUseHangs(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	for _, engine := range []string{"registry-cache", "distribution"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			c, n := newTLSCacheAt(t, "docker.io", "127.0.0.1:0", ca), newNode(t)
			c.Engine = engine
			n.bundle = ca.pem
			n.configure(t, c.RegistryCacheStatus)
			n.start(t)
			n.awaitContent(t, n.hostsTOML("docker.io"), c.through())

			address := c.listener.Addr().String()
			c.close(t)
			stopped, err := net.Listen("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			n.awaitContent(t, n.hostsTOML("docker.io"), c.direct())
			n.awaitJournal(t, "the cache "+c.Endpoint+" is not used: ")
			if err := stopped.Close(); err != nil {
				t.Fatal(err)
			}
			c.listen(t, address)
			n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
		})
	}
}

// The certificate of a cache in use gets worthless.
func TestCacheInUseCannotBeVerifiedAnyMore(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	c, n := newTLSCacheAt(t, "docker.io", "127.0.0.1:0", ca), newNode(t)
	n.bundle = ca.pem
	n.configure(t, c.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
	c.certificate.Store(ca.issue(t, -time.Minute, loopback))
	n.awaitContent(t, n.hostsTOML("docker.io"), c.direct())
	n.awaitJournal(t, "certificate has expired")
	c.certificate.Store(ca.issue(t, time.Hour, loopback))
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
}

// Somebody between node and cache may not let anything but TLS through. The cache can be used all the same.
func TestCacheThatAnswersOnlyTLS(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	c, n := newTLSCacheAt(t, "docker.io", "127.0.0.1:0", ca), newNode(t)
	address := c.listener.Addr().String()
	c.close(t)
	c.wrap = func(l net.Listener) net.Listener { return tlsOnly{l} }
	c.listen(t, address)
	n.bundle = ca.pem
	n.configure(t, c.RegistryCacheStatus)
	n.watchRoots(t, c.Upstream)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
	n.awaitRounds(t, c)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
	if got := n.journal.lines(); len(got) != 1 {
		t.Errorf("nothing changed, and the journal has %d lines:\n%s", len(got), n.journal.String())
	}
	if c.requests.Load() != 0 {
		t.Error("a request without TLS was answered, so this shows nothing")
	}
}

// tlsOnly ends connections that begin with anything but a TLS handshake.
type tlsOnly struct{ net.Listener }

func (l tlsOnly) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return &tlsOnlyConn{Conn: conn}, err
}

type tlsOnlyConn struct {
	net.Conn
	begun bool
}

func (c *tlsOnlyConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if !c.begun && n > 0 && p[0] != 0x16 {
		return 0, io.EOF
	}
	c.begun = c.begun || n > 0
	return n, err
}

// More caches than a node has, all of them hanging: the round must end in time all the same.
func TestManyCachesHang(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	var caches []*cache
	var statuses []v1alpha3.RegistryCacheStatus
	for i := range 20 {
		c := newCache(t, fmt.Sprintf("registry-%d.example.com", i))
		caches, statuses = append(caches, c), append(statuses, c.RegistryCacheStatus)
	}
	n.configure(t, statuses...)
	n.start(t)
	for _, c := range caches {
		n.awaitContent(t, n.hostsTOML(c.Upstream), c.through())
	}
	began := time.Now()
	for _, c := range caches {
		c.behaviour.Store(hangs)
	}
	for _, c := range caches {
		n.awaitContent(t, n.hostsTOML(c.Upstream), c.direct())
	}
	// One after the other they would take twenty seconds.
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the caches were withdrawn after %s", took)
	}
	for _, c := range caches {
		n.awaitJournal(t, c.Upstream+": pulled from https://"+c.Upstream+", the cache "+c.Endpoint+" is not used: ")
	}
}

// systemd waits for the unit at each restart, and so does whoever pulls.
func TestStopsAtOnce(t *testing.T) {
	t.Parallel()
	c, n := newCache(t, "docker.io"), newNode(t, "REGISTRY_CACHE_INTERVAL=100000")
	n.configure(t, c.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
	n.awaitJournal(t, "answered 200\n")
	began := time.Now()
	n.stop(t)
	if took := time.Since(began); took > patience/2 {
		t.Errorf("stopping took %s", took)
	}
	n.awaitContent(t, n.hostsTOML("docker.io"), "")
}
