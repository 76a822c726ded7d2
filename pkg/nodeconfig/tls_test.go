// SPDX-License-Identifier: Apache-2.0

package nodeconfig

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

// unreadable looks like a certificate and is none.
const unreadable = "-----BEGIN CERTIFICATE-----\nbm8gY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n"

func TestCacheWithTLSIsUsedWhileItAnswers(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(address, func(t *testing.T) {
			t.Parallel()
			ca := newAuthority(t, "ca")
			c, n := newTLSCacheAt(t, "docker.io", address, ca), newNode(t)
			n.bundle = ca.pem
			n.configure(t, c.RegistryCacheStatus)
			n.watchRoots(t, c.Upstream)
			n.start(t)
			n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
			n.awaitContent(t, n.path(TrustedPath), ca.pem)
			n.awaitJournal(t, "docker.io: pulled through the cache "+c.Endpoint+", GET /v2/ answered 200\n")
			if !strings.HasPrefix(c.Endpoint, "https://") || !strings.Contains(c.through(), "\n  ca = \""+TrustedPath+"\"\n") {
				t.Errorf("endpoint %s with hosts.toml\n%s", c.Endpoint, c.through())
			}

			c.behaviour.Store(unavailable)
			n.awaitContent(t, n.hostsTOML("docker.io"), c.direct())
			c.behaviour.Store(answers)
			n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
		})
	}
}

// A cache that cannot be verified is not used, and does not keep others from being used.
func TestCacheThatCannotBeVerified(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	for name, tc := range map[string]struct {
		bundle      string
		certificate *tls.Certificate
		reason      string
	}{
		"wrong CA":                     {newAuthority(t, "other").pem, ca.issue(t, time.Hour, loopback), "SSL certificate problem"},
		"wrong CA with the right name": {newAuthority(t, "ca").pem, ca.issue(t, time.Hour, loopback), "SSL certificate problem"},
		"expired":                      {ca.pem, ca.issue(t, -time.Minute, loopback), "certificate has expired"},
		"for another address":          {ca.pem, ca.issue(t, time.Hour, net.IPv4(10, 96, 0, 10)), "SSL: no alternative certificate subject name matches"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, plain, n := newTLSCacheAt(t, "docker.io", "127.0.0.1:0", ca), newCache(t, "quay.io"), newNode(t)
			c.certificate.Store(tc.certificate)
			n.bundle = tc.bundle
			n.configure(t, c.RegistryCacheStatus, plain.RegistryCacheStatus)
			n.start(t)
			n.awaitContent(t, n.hostsTOML("quay.io"), plain.through())
			n.awaitJournal(t, "docker.io: pulled from https://docker.io, the cache "+c.Endpoint+" is not used: ")
			n.awaitJournal(t, tc.reason)
			n.awaitRounds(t, plain)
			mustNotExist(t, n.path("etc/containerd/certs.d/docker.io"))

			// It is put right.
			n.write(t, CABundlePath, ca.pem)
			c.certificate.Store(ca.issue(t, time.Hour, loopback))
			n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
		})
	}
}

// containerd would fail every pull with such a file. With a cache in use it is worse than without one.
func TestUnusableBundle(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	for name, tc := range map[string]struct {
		content *string
		reason  string
	}{
		"absent":                          {nil, CABundlePath + " has no certificate\n"},
		"empty":                           {new(""), CABundlePath + " has no certificate\n"},
		"not PEM":                         {new("certificates\n"), CABundlePath + " has no certificate\n"},
		"a certificate cut off":           {new(ca.pem[:len(ca.pem)/2]), CABundlePath + " has no certificate\n"},
		"not a certificate":               {new(unreadable), "error setting certificate"},
		"not a certificate before a good": {new(unreadable + ca.pem), "error setting certificate"},
	} {
		for _, inUse := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, in use %t", name, inUse), func(t *testing.T) {
				t.Parallel()
				c, plain, n := newTLSCacheAt(t, "docker.io", "127.0.0.1:0", ca), newCache(t, "quay.io"), newNode(t)
				n.bundle = ca.pem
				n.configure(t, c.RegistryCacheStatus, plain.RegistryCacheStatus)
				n.watchRoots(t, c.Upstream)
				spoil := func() {
					if tc.content != nil {
						n.write(t, CABundlePath, *tc.content)
					} else if err := os.Remove(n.path(CABundlePath)); err != nil {
						t.Fatal(err)
					}
				}
				want := ""
				if inUse {
					n.start(t)
					n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
					spoil()
					want = c.direct()
				} else {
					spoil()
					n.start(t)
				}
				n.awaitJournal(t, "docker.io: pulled from https://docker.io, the cache "+c.Endpoint+" is not used: ")
				n.awaitJournal(t, tc.reason)
				n.awaitRounds(t, plain)
				n.awaitContent(t, n.hostsTOML("docker.io"), want)
				n.awaitContent(t, n.hostsTOML("quay.io"), plain.through())

				n.write(t, CABundlePath, ca.pem)
				n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
				n.awaitContent(t, n.path(TrustedPath), ca.pem)
			})
		}
	}
}

func TestTLSOnOffOn(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	plain, secured, n := newCache(t, "docker.io"), newTLSCacheAt(t, "docker.io", "127.0.0.1:0", ca), newNode(t)
	n.bundle = ca.pem
	n.configure(t, plain.RegistryCacheStatus)
	n.watchRoots(t, "docker.io")
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), plain.through())
	mustNotExist(t, n.path(TrustedPath))
	for range 2 {
		n.configure(t, secured.RegistryCacheStatus)
		n.awaitContent(t, n.hostsTOML("docker.io"), secured.through())
		n.awaitContent(t, n.path(TrustedPath), ca.pem)

		n.configure(t, plain.RegistryCacheStatus)
		n.awaitContent(t, n.hostsTOML("docker.io"), plain.through())
		n.awaitContent(t, n.path(TrustedPath), "")
	}
	mustNotExist(t, n.path(TrustedPath+".new"))
}

// Gardener rotates a CA in three steps, and in none of them is it known who is first: the node that has the new bundle
// or the cache that has the new certificate.
func TestRotationNeverWithdrawsTheCache(t *testing.T) {
	t.Parallel()
	before, after := newAuthority(t, "ca-1"), newAuthority(t, "ca-2")
	for _, name := range []string{"bundle first", "certificate first"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, n := newTLSCacheAt(t, "docker.io", "127.0.0.1:0", before), newNode(t)
			n.bundle = before.pem
			n.configure(t, c.RegistryCacheStatus)
			n.start(t)
			n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
			n.watchRoots(t, c.Upstream)

			n.write(t, CABundlePath, after.pem+before.pem)
			n.awaitContent(t, n.path(TrustedPath), after.pem+before.pem)
			n.awaitRounds(t, c)

			steps := []func(){
				func() { n.write(t, CABundlePath, after.pem) },
				func() { c.certificate.Store(after.issue(t, time.Hour, loopback)) },
			}
			if name == "certificate first" {
				steps[0], steps[1] = steps[1], steps[0]
			}
			for _, step := range steps {
				step()
				n.awaitRounds(t, c)
			}
			n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
			if got := n.journal.lines(); len(got) != 1 {
				t.Errorf("the journal has more than that the cache is used:\n%s", n.journal.String())
			}
		})
	}
}

// The old root is not trusted for ever, and a cache that still needs it is not used then.
func TestRetiredRootIsForgotten(t *testing.T) {
	t.Parallel()
	before, after := newAuthority(t, "ca-1"), newAuthority(t, "ca-2")
	c, n := newTLSCacheAt(t, "docker.io", "127.0.0.1:0", before), newNode(t, "REGISTRY_CACHE_RETENTION=1")
	n.bundle = before.pem
	n.configure(t, c.RegistryCacheStatus)
	n.watchRoots(t, c.Upstream)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())

	n.write(t, CABundlePath, after.pem)
	n.awaitContent(t, n.path(TrustedPath), after.pem+before.pem)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.direct())
	c.certificate.Store(after.issue(t, time.Hour, loopback))
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
	n.awaitContent(t, n.path(TrustedPath), after.pem)
}

// A unit that was killed, or a node that lost power, comes back with what the disk has.
func TestRootsAfterACrash(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	for name, lose := range map[string]func(t *testing.T, n *node) error{
		"nothing lost":     func(*testing.T, *node) error { return nil },
		"the copy lost":    func(_ *testing.T, n *node) error { return os.Remove(n.path(TrustedPath)) },
		"the copy cut off": func(_ *testing.T, n *node) error { return os.Truncate(n.path(TrustedPath), 10) },
		"a copy half made": func(t *testing.T, n *node) error {
			n.write(t, TrustedPath+".new", ca.pem[:10])
			return os.Remove(n.path(TrustedPath))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, n := newTLSCacheAt(t, "docker.io", "127.0.0.1:0", ca), newNode(t)
			n.bundle = ca.pem
			n.configure(t, c.RegistryCacheStatus)
			n.start(t)
			n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
			n.kill(t)
			if err := lose(t, n); err != nil {
				t.Fatal(err)
			}
			n.start(t)
			n.awaitContent(t, n.path(TrustedPath), ca.pem)
			n.awaitContent(t, n.hostsTOML("docker.io"), c.through())

			n.kill(t)
			if err := os.RemoveAll(n.path(TrustedPath)); err != nil {
				t.Fatal(err)
			}
			c.behaviour.Store(unavailable)
			n.start(t)
			n.awaitContent(t, n.hostsTOML("docker.io"), c.direct())
		})
	}
}

func TestRootsThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	for _, file := range []string{TrustedPath, TrustedPath + ".new"} {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			c, plain, n := newTLSCacheAt(t, "docker.io", "127.0.0.1:0", ca), newCache(t, "quay.io"), newNode(t)
			n.bundle = ca.pem
			n.configure(t, c.RegistryCacheStatus, plain.RegistryCacheStatus)
			n.write(t, file+"/trusted-ca.pem.new/in-the-way", "")
			n.start(t)
			n.awaitContent(t, n.hostsTOML("quay.io"), plain.through())
			n.awaitJournal(t, "docker.io: pulled from https://docker.io, the cache "+c.Endpoint+" is not used: its roots cannot be written: ")
			n.awaitRounds(t, plain)
			mustNotExist(t, n.hostsTOML("docker.io"))
		})
	}
}

// An entry of https whose hosts.toml names no CA is from an older release or half written: containerd would not trust
// the cache.
func TestEntryWithoutCA(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	c, n := newTLSCacheAt(t, "docker.io", "127.0.0.1:0", ca), newNode(t)
	n.bundle = ca.pem
	n.configure(t, c.RegistryCacheStatus)
	n.write(t, HostsDirectory+"/docker.io/hosts.toml", strings.Replace(c.through(), "  ca = \""+TrustedPath+"\"\n", "", 1))
	n.start(t)
	n.awaitJournal(t, "the cache "+c.Endpoint+" is not used: its hosts.toml does not belong to its endpoint\n")
	mustNotExist(t, n.hostsTOML("docker.io"))
}

// While the unit is stopped nothing names the roots. They stay for containerd, which may be about to read them, until
// the unit is removed.
func TestStopAndRemovalWithTLS(t *testing.T) {
	t.Parallel()
	bin := t.TempDir()
	systemdRun := "#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\n\"$@\" >/dev/null 2>&1 &\n"
	if err := os.WriteFile(filepath.Join(bin, "systemd-run"), []byte(systemdRun), 0o755); err != nil {
		t.Fatal(err)
	}
	ca := newAuthority(t, "ca")
	c, n := newTLSCacheAt(t, "docker.io", "127.0.0.1:0", ca), newNode(t, "PATH="+bin+":"+os.Getenv("PATH"))
	n.bundle = ca.pem
	n.configure(t, c.RegistryCacheStatus)
	n.watchRoots(t, c.Upstream)
	for range 2 {
		n.start(t)
		n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
		n.stop(t)
		n.awaitContent(t, n.hostsTOML("docker.io"), "")
		n.awaitContent(t, n.path(TrustedPath), ca.pem)
	}

	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
	if err := os.Remove(n.path(enabledLink)); err != nil {
		t.Fatal(err)
	}
	n.stop(t)
	n.configure(t)
	if err := os.Remove(n.path(ScriptPath)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		for _, path := range []string{filepath.Dir(HostsDirectory), "etc/containerd/certs.d/docker.io", "run/registry-cache-clean"} {
			if _, err := os.Lstat(n.path(path)); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("%s is still there (%w)", path, err)
			}
		}
		return nil
	})
}

// Somebody else's hosts.toml may name the roots, copied from ours. His pulls must go on.
func TestRootsOfSomebodyElseStay(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	secured, plain, n := newTLSCacheAt(t, "docker.io", "127.0.0.1:0", ca), newCache(t, "docker.io"), newNode(t)
	n.bundle = ca.pem
	n.configure(t, secured.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), secured.through())
	n.write(t, "etc/containerd/certs.d/ghcr.io/hosts.toml", strings.TrimPrefix(secured.through(), Marker+"\n"))
	n.configure(t, plain.RegistryCacheStatus)
	n.awaitContent(t, n.hostsTOML("docker.io"), plain.through())
	n.awaitRounds(t, plain)
	n.awaitContent(t, n.path(TrustedPath), ca.pem)
}

// watchRoots looks, until the end of the test, at what containerd would find at any moment: a hosts.toml that names
// roots, and no certificate in them, fails every pull. From the first time that it sees the entry of the cache of upstream
// in a test of a rotation, it must stay.
func (n *node) watchRoots(t *testing.T, upstream string) {
	t.Helper()
	_, err := os.Stat(n.hostsTOML(upstream))
	mustStay := err == nil
	stop, stopped := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(stop); <-stopped })
	go func() {
		defer close(stopped)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			hosts, err := os.ReadFile(n.hostsTOML(upstream))
			named := strings.Contains(string(hosts), TrustedPath)
			if mustStay && !named {
				t.Errorf("the cache was withdrawn: hosts.toml is %q (%v)", hosts, err)
				return
			}
			if !named {
				continue
			}
			roots, err := os.ReadFile(n.path(TrustedPath))
			if x509.NewCertPool().AppendCertsFromPEM(roots) {
				continue
			}
			// The reader may have been slower than containerd.
			if again, againErr := os.ReadFile(n.hostsTOML(upstream)); againErr == nil && string(again) == string(hosts) {
				t.Errorf("hosts.toml names roots that are %q (%v)", roots, err)
				return
			}
		}
	}()
}

var loopback = net.IPv4(127, 0, 0, 1)

// authority is a CA.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         string
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{certificate, key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}
}

// issue makes a certificate for address that expires after validity, which may be negative.
func (a *authority) issue(t *testing.T, validity time.Duration, address net.IP) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "cache"}, IPAddresses: []net.IP{address},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(validity),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// newTLSCacheAt is newCacheAt with a certificate of ca.
func newTLSCacheAt(t *testing.T, upstream, address string, ca *authority) *cache {
	t.Helper()
	c := &cache{RegistryCacheStatus: v1alpha3.RegistryCacheStatus{Upstream: upstream, RemoteURL: "https://" + upstream, Engine: "registry-cache"}}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	c.certificate.Store(ca.issue(t, time.Hour, net.ParseIP(host)))
	c.listen(t, address)
	c.Endpoint = "https://" + c.listener.Addr().String()
	t.Cleanup(func() { c.close(t) })
	return c
}
